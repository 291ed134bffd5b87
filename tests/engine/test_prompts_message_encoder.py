"""Prompts that go on from earlier ones have the ids of prompts that are built from nothing."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine.prompts.chat_template import ChatTemplate
from engine.prompts.message_encoder import REMEMBERED, MessageEncoder
from engine.prompts.messages import Message
from engine.prompts.text_encoder import TextEncoder

TURNS = ("<|turn|>", "<|end|>")
CHAT = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "<|turn|>assistant\n"
)
TRIMMED = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% else %}{{ m.content.strip() }}</s>{% endif %}{% endfor %}"
)
THINKS = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{% if m.role == 'assistant' and not loop.last %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|end|>"
    "{% endfor %}<|turn|>assistant\n"
)
MOVED = (
    "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.system = m.content + '\n\n' %}{% else %}<|turn|>"
    "{{ (ns.system if loop.last else '') + m.content }}<|end|>{% endif %}{% endfor %}"
)
PIECES = (
    *(
        "a",
        "river",
        " river",
        "rivers",
        "The mill",
        "x" * 40,
        "0123456789",
        "naïve",
        "日本語",
        "שלום",
    ),
    *("🦊", "👩‍👩‍👧", "e\u0301", "\u200b", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", ""),
    *(
        "<|turn|>",
        "<|end|>",
        "<|tur",
        "n|>",
        "[INST]",
        "[/INST]",
        "</s>",
        "<s>",
        "<",
        "|>",
        "<pad>",
    ),
    *("</think>", "<think>", "<sp>", "<sp> ", " <sp>", "<norm>", "<word>", "a<word>b"),
)


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


def text(rng: random.Random) -> str:
    return "".join(rng.choices(PIECES, k=rng.randrange(7)))


def grown(rng: random.Random, made: Any, history: list[Message]) -> list[Message]:
    """A conversation as apps go on with it: further, back, with another answer, edited."""
    turns = list(history)
    step = rng.random()
    if step < 0.15 and len(turns) > 3:
        del turns[-2:]
    elif step < 0.3 and len(turns) > 2:
        at = rng.randrange(len(turns))
        turns[at] = Message(turns[at].role, text(rng), turns[at].tokens)
    elif step < 0.4 and len(turns) > 2 and turns[-2].role == "assistant":
        turns[-2] = Message("assistant", turns[-2].text, _other_ids(rng, made, turns[-2].text))
    else:
        answer = text(rng)
        turns += [
            Message(
                "assistant", answer, _other_ids(rng, made, answer) if rng.random() < 0.7 else ()
            ),
            Message("user", text(rng)),
        ]
    return turns


def _other_ids(rng: random.Random, made: Any, answer: str) -> tuple[int, ...]:
    """Ids that a model could have written the text with, which a tokenizer would not take."""
    cut = rng.randrange(len(answer) + 1)
    parts = (answer[:cut], answer[cut:])
    return tuple(t for part in parts for t in made.encode(part, add_special_tokens=False))


@pytest.mark.parametrize(
    "template", [CHAT, TRIMMED, THINKS, MOVED], ids=["chat", "inst", "thinks", "moved"]
)
@pytest.mark.parametrize("name", MADE)
def test_as_from_nothing(name: str, template: str, seed: int) -> None:
    rng = random.Random(seed)
    made = tokenizer(name, template)
    going_on = encoder(made)
    conversations = [
        [Message("system", text(rng)), Message("user", text(rng))],
        [Message("user", text(rng))],
    ]
    for _ in range(25):
        i = rng.randrange(len(conversations))
        turns = conversations[i] = grown(rng, made, conversations[i])
        assert going_on.encode(turns).tokens == encoder(made).encode(turns).tokens, turns


def test_only_what_is_new_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where answers have ids that no tokenizer would take."""
    made = tokenizer("byte level", CHAT)
    backend = TextEncoder(made)
    encoded: list[str] = []

    class Counting(TextEncoder):
        def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
            encoded.append(text)
            return super().encode_with_starts(text)

    template = ChatTemplate(made, None, sees=False)
    going_on = MessageEncoder(
        template, Counting(made), lambda ids: made.decode(list(ids)), len(made), special=False
    )
    turns = [Message("user", "The river " * 500)]
    going_on.encode(turns)
    for i in range(4):
        ids = tuple(t for letter in f"rivers {i}" for t in backend.encode(letter))
        turns += [Message("assistant", f"rivers {i}", ids), Message("user", "And then?")]
        tokens = going_on.encode(turns).tokens
        assert str(ids)[1:-1] in str(tokens)
        assert len(encoded[-1]) < 150


def test_many_conversations_in_turns() -> None:
    made = tokenizer("byte level", CHAT)
    going_on = encoder(made)
    talks = [[Message("user", f"{i} river")] for i in range(REMEMBERED + 3)]
    for turn in range(3):
        for talk in talks:
            talk += [Message("assistant", f"{turn}"), Message("user", "a")] if turn else []
            assert going_on.encode(talk).tokens == encoder(made).encode(talk).tokens


@pytest.mark.parametrize("begins", ["<s>", ""])
def test_special_tokens_stand_there_once(begins: str) -> None:
    """A processor adds the tokenizer's BOS to a prompt that brings none."""
    from tokenizers.processors import TemplateProcessing

    made = tokenizer("byte level", begins + CHAT)
    bos, eos = made.bos_token_id, made.eos_token_id
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", bos), ("</s>", eos)]
    )
    tokens = encoder(made, special=True).encode([Message("user", "a")]).tokens
    assert tokens.count(bos) == 1
    assert tokens[0] == bos
    assert (tokens[-1] == eos) == (not begins)
    assert encoder(made).encode([Message("user", "a")]).tokens.count(bos) == bool(begins)
