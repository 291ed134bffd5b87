"""A tokenizer that knows any text, with a family's special tokens where the tiny vocabulary has
them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vision_add_ons.testing.vocabulary import BOS, EOS, PAD, VOCAB

MERGES = (("Ċ", "Ċ"), ("ĊĊ", "ĊĊ"), ("Ġ", "Ġ"))
"""Line breaks, and spaces, that stand together become one token, as in real vocabularies."""


def write_text_tokenizer(
    folder: Path,
    special: Mapping[str, tuple[int, str]],
    adds_bos: bool = False,
    control: Sequence[str] = (),
) -> Any:
    """Write it into a checkpoint folder, in place of the one there; with `adds_bos`, one that puts
    BOS before a text.

    A token a byte, from `VOCAB` on, and then the special tokens `control`: such prompts are there
    to be looked at, not to be answered.
    Returns the same tokenizer, of transformers, without BOS.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    named = {"pad_token": (PAD, "<pad>"), "bos_token": (BOS, "<s>"), "eos_token": (EOS, "</s>")}
    named |= special
    vocabulary = {text: token for token, text in named.values()}
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    vocabulary |= {letter: VOCAB + i for i, letter in enumerate([*letters, *control])}
    named |= {f"control_{i}": (vocabulary[text], text) for i, text in enumerate(control)}
    usual = ("pad_token", "bos_token", "eos_token")

    def made(bos: tuple[int, str] | None) -> Any:
        words = Tokenizer(models.BPE(vocabulary, list(MERGES)))
        words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        words.decoder = decoders.ByteLevel()
        if bos is not None:
            words.post_processor = processors.TemplateProcessing(
                single=f"{bos[1]} $A", special_tokens=[(bos[1], bos[0])]
            )
        return PreTrainedTokenizerFast(
            tokenizer_object=words,
            **{name: text for name, (_, text) in named.items() if name in usual},
            extra_special_tokens={n: text for n, (_, text) in named.items() if n not in usual},
        )

    (folder / "chat_template.jinja").unlink(missing_ok=True)
    made(named["bos_token"] if adds_bos else None).save_pretrained(folder)
    return made(None)
