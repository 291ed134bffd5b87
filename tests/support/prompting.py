"""Tokenizers of every kind, small, and encoders of messages by them."""

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine.prompts.chat_template import ChatTemplate
from engine.prompts.message_encoder import MessageEncoder
from engine.prompts.text_encoder import TextEncoder

TURNS = ("<|turn|>", "<|end|>")


def _vocabulary(letters: list[str], merges: list[tuple[str, str]]) -> dict[str, int]:
    tokens = [*letters, *(a + b for a, b in merges)]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


def byte_level() -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("r", "i"), ("ri", "v"), ("Ġ", "Ġ"), ("Ċ", "Ċ"), ("e", "r"), ("Ġ", "r"), ("x", "x")]
    made = Tokenizer(models.BPE(_vocabulary(letters, merges), merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def metaspace(scheme: str) -> Tokenizer:
    letters = ["<unk>", "▁", *(f"<0x{i:02X}>" for i in range(256)), *map(chr, range(33, 127))]
    merges = [("▁", "▁"), ("▁", "r"), ("r", "i"), ("▁r", "i"), ("x", "x"), ("▁", "a")]
    made = Tokenizer(
        models.BPE(
            _vocabulary(letters, merges),
            merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.decoder = decoders.Metaspace(prepend_scheme=scheme, split=False)
    return made


def prepended() -> Tokenizer:
    """As Llama's first tokenizers were converted: by normalizing."""
    made = metaspace("never")
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    made.normalizer = normalizers.Sequence(steps)
    made.pre_tokenizer = None
    return made


def words() -> Tokenizer:
    """Whole words, lower-cased: what is unknown is so to the length of the word."""
    known = {
        word: i for i, word in enumerate(("[UNK]", "a", "river", "the", "mill", "turn", "end"))
    }
    made = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


MADE: dict[str, Callable[[], Tokenizer]] = {
    "byte level": byte_level,
    "metaspace, always": lambda: metaspace("always"),
    "metaspace, first": lambda: metaspace("first"),
    "prepended": prepended,
    "words": words,
}


def tokenizer(name: str, template: str) -> PreTrainedTokenizerFast:
    made = MADE[name]()
    plain = (*TURNS, "</s>", "<s>", "<pad>", "[INST]", "[/INST]", "<|turn|><|turn|>")
    made.add_special_tokens([AddedToken(text, normalized=False) for text in plain])
    made.add_tokens(
        [
            AddedToken("<sp>", lstrip=True, rstrip=True, normalized=False),
            AddedToken("<norm>", normalized=True),
            AddedToken("<word>", single_word=True, normalized=False),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", chat_template=template
    )


def encoder(made: Any, special: bool = False) -> MessageEncoder:
    def decode(tokens: Any) -> str:
        return str(made.decode(list(tokens), skip_special_tokens=False))

    template = ChatTemplate(made, None, sees=False)
    return MessageEncoder(template, TextEncoder(made), decode, len(made), special)
