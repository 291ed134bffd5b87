"""What is thought, called and said, however the text is cut into pieces."""

import random
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from support.prompting import tokenizer

from engine.decoding.channels import Channels, Marks, Piece
from engine.prompts.thought import Thought, thought_of

CALLS = ("<tool_call>", "</tool_call>")


def marks(*added: str, **more: Any) -> Marks:
    made = tokenizer("byte level", "")
    made.add_tokens(list(added))
    return Marks(TokenizerWrapper(made, **more))


THINKS = marks("<think>", "</think>")


def split(channels: Channels, chunks: list[str]) -> list[tuple[str, str]]:
    """Texts by their channels, those of one put together; a call by itself."""
    pieces = [piece for chunk in chunks for piece in channels.feed(chunk)] + channels.flush()
    joined: list[tuple[str, str]] = []
    closed = True
    for piece in pieces:
        if joined and joined[-1][0] == piece.channel and not (piece.channel == "tool" and closed):
            joined[-1] = (piece.channel, joined[-1][1] + piece.text)
        else:
            joined.append((piece.channel, piece.text))
        closed = piece.ends
    return joined


def channels(thought: Thought = "none", calls: Any = None, of: Marks = THINKS) -> Channels:
    made = of.channels(thought, calls)
    assert made is not None
    return made


TABLE: list[tuple[Thought, str, list[tuple[str, str]]]] = [
    ("none", "Hello", [("said", "Hello")]),
    ("none", " \nHello\n", [("said", " \nHello\n")]),
    ("none", "<think>\nHm\n\n</think>\n\nYes.\n", [("thought", "Hm"), ("said", "Yes.\n")]),
    ("none", "\n<think></think>\nYes", [("said", "Yes")]),
    ("open", "\nHm. \n So\n</think>\n\nYes", [("thought", "Hm. \n So"), ("said", "Yes")]),
    ("open", "Hm\n", [("thought", "Hm\n")]),
    ("open", "Hm </thi", [("thought", "Hm </thi")]),
    ("open", "a <think> b</think>c", [("thought", "a <think> b"), ("said", "c")]),
    ("closed", "\n\nYes", [("said", "\n\nYes")]),
    ("none", "a </think> b", [("said", "a </think> b")]),
    ("none", "a <thin", [("said", "a <thin")]),
    ("none", "a <<<think>b", [("said", "a <<"), ("thought", "b")]),
    ("none", "<think>a</think>  ", [("thought", "a")]),
    ("none", "  ", [("said", "  ")]),
    (
        "none",
        "<think>a</think>b <think>c</think>\nd",
        [("thought", "a"), ("said", "b "), ("thought", "c"), ("said", "d")],
    ),
    ("none", "<tool_call>x</tool_call>", [("said", "<tool_call>x</tool_call>")]),
    ("open", "cut \ufffd</think>off", [("thought", "cut"), ("said", "off")]),
]


@pytest.mark.parametrize(("thought", "text", "expected"), TABLE)
def test_however_it_is_cut(
    thought: Thought, text: str, expected: list[tuple[str, str]], seed: int
) -> None:
    rng = random.Random(seed)
    for _ in range(20):
        cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(8)))
        chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert split(channels(thought), chunks) == expected, chunks
    assert split(channels(thought), list(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "I look.\n<tool_call>a</tool_call>\n<tool_call>b</tool_call>\nDone",
            [
                ("said", "I look.\n"),
                ("tool", "<tool_call>a</tool_call>"),
                ("tool", "<tool_call>b</tool_call>"),
                ("said", "Done"),
            ],
        ),
        (
            "<think>Hm<tool_call>a <think> b</tool_call>c",
            [("thought", "Hm"), ("tool", "<tool_call>a <think> b</tool_call>"), ("said", "c")],
        ),
        ("<tool_call>cut o", [("tool", "<tool_call>cut o")]),
        ("<tool_call>cut</tool", [("tool", "<tool_call>cut</tool")]),
    ],
)
def test_calls(text: str, expected: list[tuple[str, str]]) -> None:
    """Come whole, marks and all; where one ends is told."""
    assert split(channels(calls=CALLS), [text]) == expected
    assert split(channels(calls=CALLS), list(text)) == expected


def test_where_a_call_ends() -> None:
    split_ = channels(calls=CALLS)
    assert split_.feed("<tool_call>a</tool_") == [Piece("tool", "<tool_call>"), Piece("tool", "a")]
    assert split_.feed("call>") == [Piece("tool", "</tool_call>", ends=True)]
    assert split_.called == 1
    endless = channels(calls=("[CALL]", ""))
    assert split(endless, ["so [CALL]a", "b", "[CALL]c"]) == [
        ("said", "so "),
        ("tool", "[CALL]ab[CALL]c"),
    ]


def test_nothing_to_split() -> None:
    """Costs nothing: there is nothing that splits."""
    plain = marks()
    assert plain.channels("none") is None
    assert plain.channels("none", CALLS) is not None
    assert THINKS.channels(None) is None
    assert THINKS.channels(None, CALLS) is None


def test_only_what_may_be_a_mark_is_held_back() -> None:
    split_ = channels("open")
    assert split_.feed("Hm </") == [Piece("thought", "Hm")]
    assert split_.feed("b>") == [Piece("thought", " </b>")]
    assert split_.feed("</think>") == []
    assert not split_.thinking
    assert split_.feed("\n\n") == []
    assert split_.feed("Yes\n") == [Piece("said", "Yes\n")]
    assert split_.said == 1


def test_behind_a_thought_nothing_is_a_mark_where_a_schema_holds() -> None:
    text = "<think>a</think>\n<think>b</think>"
    first = THINKS.exact("none", may_think=True)
    assert first is not None
    assert split(first, [text]) == [("thought", "a"), ("said", "\n<think>b</think>")]
    other = THINKS.exact("none", may_think=True)
    assert other is not None
    assert split(other, ["<thi", "s", text]) == [("said", "<this" + text)]
    assert THINKS.exact("closed", may_think=False) is None
    assert THINKS.exact(None, may_think=True) is None
    assert marks().exact("none", may_think=True) is None


def test_a_schema_s_thought_ends_where_it_is_told() -> None:
    """By its tokens: a text that only looks like the mark does not end it."""
    for start, begun in (("", "open"), ("<think>", "none")):
        split_ = THINKS.exact(begun, may_think=True)  # type: ignore[arg-type]
        assert split_ is not None
        pieces = split_.feed(f"{start}a</think>b</th", thinking=True)
        pieces += split_.feed("ink>", thinking=True)
        pieces += split_.feed("c</think>", thinking=False)
        pieces += split_.feed("d", thinking=False) + split_.flush()
        assert "".join(p.text for p in pieces if p.channel == "thought") == "a</think>b</think>c"
        assert "".join(p.text for p in pieces if p.channel == "said") == "d"


def test_forms_with_headers() -> None:
    """mlx-lm drops the text of headers; one that never ends is told all the same."""
    from mlx_lm.chat_templates.muse_spark import RESPONSE_FORMAT

    made = marks(response_format=RESPONSE_FORMAT)
    text = " to=self<|message|>Hm<|eom|><|start|>assistant to=user<|message|>Yes<|eot|>"
    assert split(channels(of=made), [text]) == [("thought", "Hm"), ("said", "Yes")]
    assert split(channels(of=made), ["what ", "else"]) == [("said", "what else")]
    called = "to=f<|message|><atem:function_calls>x</atem:function_calls>"
    told = split(channels(of=made), [called])
    assert told == [("said", called)]
    wanted = ("<atem:function_calls>", "</atem:function_calls>")
    told = split(channels(of=made, calls=wanted), [called])
    assert told == [("tool", "<atem:function_calls>x</atem:function_calls>")]


@pytest.mark.parametrize(
    ("written", "thought"),
    [
        ("<|end|>\n<|turn|>assistant\n", "none"),
        ("<|turn|>assistant\n<think>\n", "open"),
        ("<|turn|>assistant\n<think>\n\n</think>\n\n", "closed"),
        ("</think><think>", "open"),
        ("</think>", "closed"),
    ],
)
def test_how_a_prompt_ends(written: str, thought: str) -> None:
    assert thought_of(written, ("<think>", "</think>")) == thought
