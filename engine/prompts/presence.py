"""Whether a rendered prompt holds every message's text, and where.

A template is a program: it may trim a text, take the reasoning out of an earlier answer, or move
the system message into the first question, all on purpose. What it may not do is lose somebody's
words. So the conversation is rendered once more with a word of its own in place of each text: that
shows what the template itself writes, and where each text belongs. The prompt must be that, with
the texts in their places.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple

from vision_add_ons.errors import PromptError

Span = tuple[int, int]
"""Where a text begins and ends in a prompt, as far as the template left it."""

MOST_SOUGHT = 2**16
"""Characters of a text whose words are sought one by one."""

THINKING = ("</think>", "</thought>", "[/THINK]", "</seed:think>", "<channel|>", "</reasoning>")
"""Texts that end an answer's reasoning, which templates leave out of earlier turns."""


class Piece(NamedTuple):
    """A message's text, or one of them."""

    message: int
    """The message's place in the conversation, from 0."""
    role: str
    text: str
    alone: bool
    """Whether its message has nothing else."""


class TextFinder:
    """Finds messages' texts in prompts that one chat template rendered; any thread may call it.

    `told` is what errors call it.
    """

    def __init__(self, told: str) -> None:
        self._told = told
        self._between: dict[tuple[str, str], str] = {}
        """What the template last wrote between a message of one role and the next of another."""

    def locate(
        self,
        rendered: str,
        pieces: Sequence[Piece],
        found: Sequence[Span],
        with_words: Callable[[list[str]], str],
    ) -> list[Span]:
        """Where each piece stands in `rendered`.

        `found` are the places of the first ones, as far as they are known. `with_words` renders
        the same conversation with these words in place of the pieces' texts. Raises `PromptError`
        naming the first message whose text is not there.
        """
        if found:
            spans = self._continued(rendered, found[-1][1], pieces[len(found) - 1 :])
            if spans is not None:
                return [*found, *spans]
        words = [f"Qx{i}jvkz" for i in range(len(pieces))]
        try:
            skeleton = with_words(words)
        except PromptError:  # a template that judges the texts themselves
            skeleton = ""
        places = [skeleton.find(word) for word in words]
        if all(skeleton.count(word) == 1 for word in words) and _ordered(pieces, places):
            order = sorted(range(len(pieces)), key=places.__getitem__)
            literals = _between(skeleton, [words[i] for i in order])
            spans = _walk(rendered, 0, literals, [pieces[i].text for i in order])
            if spans is not None:
                self._learn([pieces[i] for i in order], literals)
                placed = dict(zip(order, spans, strict=True))
                return [placed[i] for i in range(len(pieces))]
        return self._search(rendered, pieces)

    def _continued(self, rendered: str, at: int, pieces: Sequence[Piece]) -> list[Span] | None:
        """Those behind the first piece, which ends `at`, if all is as the template wrote before."""
        if not all(piece.alone for piece in pieces):
            return None
        roles = [*(piece.role for piece in pieces), ""]
        literals = [self._between.get(pair) for pair in pairwise(roles)]
        known = [literal for literal in literals if literal is not None]
        if len(known) < len(literals):
            return None
        return _walk(rendered, at, known, [piece.text for piece in pieces[1:]])

    def _learn(self, pieces: Sequence[Piece], literals: Sequence[str]) -> None:
        for i, piece in enumerate(pieces):
            following = pieces[i + 1] if i + 1 < len(pieces) else None
            if piece.alone and (following is None or following.alone):
                role = "" if following is None else following.role
                self._between[piece.role, role] = literals[i + 1]

    def _search(self, rendered: str, pieces: Sequence[Piece]) -> list[Span]:
        """Each text behind the one before it, wherever: for templates that judge texts."""
        spans = []
        done = 0
        for piece in pieces:
            span = _sought(rendered, piece.text, 0 if piece.role == "system" else done)
            if span is None:
                said = piece.text.strip()[:40]
                raise PromptError(
                    f"{self._told} leaves out what message {piece.message + 1} ({piece.role}) "
                    f"says: {said!r}; put it into a user message, or give the whole prompt as one "
                    "text"
                )
            spans.append(span)
            if piece.role != "system":
                done = span[1]
        return spans


def _between(skeleton: str, words: Sequence[str]) -> list[str]:
    """What stands before the first word, between each two, and behind the last."""
    literals = []
    for word in words:
        literal, _, skeleton = skeleton.partition(word)
        literals.append(literal)
    return [*literals, skeleton]


def _walk(
    rendered: str, at: int, literals: Sequence[str], texts: Sequence[str]
) -> list[Span] | None:
    """The spans of texts between literals, if from `at` on that is all that is rendered."""
    if not rendered.startswith(literals[0], at):
        return None
    at += len(literals[0])
    spans: list[Span] = []
    tried: list[Iterator[str]] = []
    hopeless: set[tuple[int, int]] = set()
    while len(spans) < len(texts) or at < len(rendered):
        i = len(spans)
        if len(tried) == i < len(texts) and (i, at) not in hopeless:
            tried.append(_variants(texts[i]))
        for kept in tried[i] if i < len(tried) else ():
            end = at + len(kept)
            if rendered.startswith(kept, at) and rendered.startswith(literals[i + 1], end):
                spans.append((at, end))
                at = end + len(literals[i + 1])
                break
        else:
            # What one text keeps of its end may be how the next begins: back to that one.
            hopeless.add((i, at))
            del tried[i:]
            if not spans:
                return None
            at = spans.pop()[0]
    return spans


def _variants(text: str) -> Iterator[str]:
    """A text as it is, and what templates make of one on purpose."""
    yield text
    yield from _trimmed(text)
    for end in THINKING:
        _, found, answer = text.rpartition(end)
        if found:
            yield answer
            yield from _trimmed(answer)
    if not text.strip():
        yield " "


def _trimmed(text: str) -> Iterator[str]:
    core = text.strip()
    before, after = (text.partition(core)[0], text.rpartition(core)[2]) if core else (text, "")
    for start in dict.fromkeys((before, before.lstrip("\n"), before.lstrip(" "), "")):
        for end in dict.fromkeys((after, after.rstrip("\n"), after.rstrip(" "), "")):
            yield start + core + end


def _ordered(pieces: Sequence[Piece], places: Sequence[int]) -> bool:
    """Whether all but the system messages stand in their order: those, templates may move."""
    kept = [place for piece, place in zip(pieces, places, strict=True) if piece.role != "system"]
    return kept == sorted(kept)


def _sought(rendered: str, text: str, start: int) -> Span | None:
    """Where a text next ends, whatever became of the blanks around it and between its words."""
    places = [(rendered.find(kept, start), len(kept)) for kept in _variants(text)]
    spans = [(place, place + length) for place, length in places if place >= 0]
    words = None
    if len(text) <= MOST_SOUGHT:
        words = re.compile(r"\s+".join(map(re.escape, text.split()))).search(rendered, start)
    return min([*spans, *([words.span()] if words else [])], key=itemgetter(1), default=None)
