"""Texts that stand side by side in a prompt: where one ends is where the next begins."""

from collections.abc import Callable, Sequence

import pytest

from engine.prompts.presence import Piece, Span, TextFinder

MARK = "\n\n<mark>"


def located(
    whole: str, pieces: Sequence[Piece], with_words: Callable[[list[str]], str]
) -> list[Span]:
    return TextFinder("the chat template").locate(whole, pieces, [], with_words)


def rendered(texts: list[str]) -> str:
    """As templates do that trim each part of a message."""
    return "user:" + "".join(text.strip() for text in texts) + MARK + "\n"


@pytest.mark.parametrize(
    ("texts", "kept"),
    [
        (["a\n", ""], ["a", ""]),
        (["\n a \n\n", " ", "\n"], ["a", "", ""]),
        (["a", "\nb\n", " \n", "c "], ["a", "b", "", "c"]),
        (["\n\n", "a\n", "\n"], ["", "a", ""]),
    ],
)
def test_what_follows_looks_like_the_end_of_a_text(texts: list[str], kept: list[str]) -> None:
    pieces = [Piece(0, "user", text, False) for text in texts]
    whole = rendered(texts)
    spans = located(whole, pieces, rendered)
    assert [whole[begin:end] for begin, end in spans] == kept


def test_many_ways_are_no_long_search() -> None:
    """Each text is tried once at each place, however many ways lead there."""
    texts = ["\n" * 4] * 40

    def other(words: list[str]) -> str:
        return "user:" + "".join(words) + MARK

    pieces = [Piece(0, "user", text, False) for text in texts]
    spans = located("user:" + "\n" * 81 + MARK, pieces, other)
    assert len(spans) == 40


def test_a_space_may_stand_for_what_is_empty() -> None:
    """As in templates whose model saw no empty answer; what stands behind it is found, too."""

    def spaced(texts: list[str]) -> str:
        return "".join(f"({text.strip() or ' '})" for text in texts)

    pieces = [Piece(i, "user", text, True) for i, text in enumerate(("a", "", "\n", "a"))]
    whole = spaced([piece.text for piece in pieces])
    spans = located(whole, pieces, spaced)
    assert spans == [(1, 2), (4, 5), (7, 8), (10, 11)]
