"""The little vocabulary that all tiny checkpoints of the kit share, and the tokenizer for it."""

from collections.abc import Mapping
from pathlib import Path

VOCAB = 96
"""Token ids, few enough that an engine can tell the log-probability of each."""
PAD = 0
"""The token that fills up, in no prompt of the kit's."""
BOS = 1
"""The token that begins a text."""
EOS = 2
"""The token that ends an answer."""
UNK = 3
"""The token for all that the tokenizer does not know."""
LINE_BREAKS = {"\n": 4, "\n\n": 5}
"""Tokens that are made of a text, and are no special ones."""
WORDS = range(8, 80)
"""Ids of plain words, of which prompts and answers are made; those above are a family's own special
tokens, such as its image token."""

NONE_SPECIAL: Mapping[str, tuple[int, str]] = {}
"""Of families whose prompts have no special tokens for pictures."""
JOINED = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
"""The chat template where no token marks a picture's place: the messages behind each other."""


def word(token: int) -> str:
    """The text of a token: `w9` for 9, and `<pad>`, `<s>`, `</s>`, `<unk>` and line breaks."""
    lines = {token: text for text, token in LINE_BREAKS.items()}
    return {PAD: "<pad>", BOS: "<s>", EOS: "</s>", UNK: "<unk>", **lines}.get(token, f"w{token}")


def write_tokenizer(
    folder: Path,
    chat_template: str | None = None,
    special: Mapping[str, tuple[int, str]] = NONE_SPECIAL,
) -> None:
    """Write a tokenizer of `VOCAB` words, which spaces part, into a checkpoint folder.

    `special` are a family's special tokens (see `Reference.special_tokens`).
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    usual = {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS, "unk_token": UNK}
    named = {name: word(token) for name, token in usual.items()}
    named |= {name: text for name, (_, text) in special.items()}
    texts: dict[int, str] = dict(special.values())
    vocabulary = {texts.get(token, word(token)): token for token in range(VOCAB)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=named["unk_token"]))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed"),
            pre_tokenizers.Split(Regex(r"\n+"), "isolated"),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        **{name: text for name, text in named.items() if name in usual},
        extra_special_tokens={n: text for n, text in named.items() if n not in usual},
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
