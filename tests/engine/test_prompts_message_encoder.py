"""Prompts that go on from earlier ones have the ids of prompts that are built from nothing."""

import random
from typing import Any

import pytest
from support.prompting import MADE, encoder, tokenizer

from engine.prompts.chat_template import ChatTemplate
from engine.prompts.message_encoder import REMEMBERED, MessageEncoder
from engine.prompts.messages import Message
from engine.prompts.text_encoder import TextEncoder

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


END = "<|end|>"
LONG = "x" * 40
"""More than any added token has, so that what stands before it may be cut there."""


def letters_of(made: Any, *texts: str) -> tuple[int, ...]:
    """Ids that no tokenizer would take: every letter by itself."""
    return tuple(made.convert_tokens_to_ids(letter) for text in texts for letter in text)


def test_no_cut_within_an_answer_that_was_edited() -> None:
    """Its ids may have to take the place of what stands before the edit, too."""
    made = tokenizer("byte level", CHAT)
    ids = (*letters_of(made, "ri"), made.convert_tokens_to_ids(END), *letters_of(made, LONG, "c"))
    going_on = encoder(made)
    for letter in "bc":
        said = [Message("user", "a"), Message("assistant", f"ri{END}{LONG}{letter}", ids)]
        assert going_on.encode(said).tokens == encoder(made).encode(said).tokens


def test_no_cut_within_the_ids_of_an_answer() -> None:
    """They all begin where the answer does: whatever was encoded behind one would come twice."""
    made = tokenizer("byte level", CHAT)
    end = made.convert_tokens_to_ids(END)
    answer = Message("assistant", f"{END}{END}{LONG}", (end, end, *letters_of(made, LONG)))
    going_on = encoder(made)
    start = [Message("user", "a"), answer]
    further = [*start, Message("user", "b"), Message("assistant", "c"), Message("user", "d")]
    for said in (
        [*start, Message("user", "b")],
        further,
        [*start, Message("assistant", "e")],
        [*further, Message("assistant", "f"), Message("user", "g")],
        [*start, Message("system", "h")],
    ):
        assert going_on.encode(said).tokens == encoder(made).encode(said).tokens
