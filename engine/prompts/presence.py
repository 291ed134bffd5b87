"""Whether a rendered prompt holds every message's text, and where.

A template is a program: it may trim a text, take the reasoning out of an earlier answer, or move
the system message into the first question, all on purpose. What it may not do is lose somebody's
words. So the conversation is rendered once more with a word of its own in place of each text: that
shows what the template itself writes, and where each text belongs. The prompt must be that, with
the texts in their places.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple

from vision_add_ons.errors import PromptError

Span = tuple[int, int]
"""Where a text begins and ends in a prompt, as far as the template left it."""

THINKING = ("</think>", "</thought>", "[/THINK]", "</seed:think>", "<channel|>", "</reasoning>")
"""Texts that end an answer's reasoning, which templates leave out of earlier turns."""

ANSWER = ("<answer>", "</answer>")
"""What stands around an answer behind its reasoning, and goes with it."""

SWITCHES = re.compile("/no_think|/think|/system_override")
"""Words that a user writes for the template, which takes them out."""

PATIENCE = 32
"""Steps that a text may take to be placed, on average; hostile ones could take millions."""

WORD = "Qx{}jvkz"
"""In place of a text: it stands in no template."""

WORDS = re.compile("Qx([0-9]+)jvkz")


class Piece(NamedTuple):
    """A message's text, or one of them; or the name of a tool that an answer calls."""

    message: int
    """The message's place in the conversation, from 0."""
    role: str
    text: str
    alone: bool
    """Whether its message has nothing else."""
    called: bool = False
    """Whether it is a tool's name, which may stand anywhere, and as often as the template likes."""


class TextFinder:
    """Finds messages' texts in prompts that one chat template rendered; any thread may call it.

    `told` is what errors call it, and `shown` how they show a text.
    """

    def __init__(self, told: str, shown: Callable[[str], str] = str) -> None:
        self._told = told
        self._shown = shown
        self._between: dict[tuple[str, str], str] = {}
        """What the template last wrote between a message of one role and the next of another."""

    def locate(
        self,
        rendered: str,
        pieces: Sequence[Piece],
        found: Sequence[Span],
        with_words: Callable[[list[str]], str],
    ) -> list[Span]:
        """Where each piece stands in `rendered`; of a tool's name, nothing but that it does.

        `found` are the places of the first ones, as far as they are known. `with_words` renders
        the same conversation with these words in place of the pieces' texts. Raises `PromptError`
        naming the first message whose text is not there.
        """
        if found:
            spans = self._continued(rendered, found[-1][1], pieces[len(found) - 1 :])
            if spans is not None:
                return [*found, *spans]
        try:
            skeleton = with_words([WORD.format(i) for i in range(len(pieces))])
        except PromptError:  # a template that judges the texts themselves
            return self._search(rendered, pieces)
        order, literals = self._places(skeleton, pieces)
        spans = _walk(rendered, 0, literals, [pieces[i] for i in order])
        if spans is None:
            return self._search(rendered, pieces)
        self._learn([pieces[i] for i in order], literals)
        placed = dict(zip(order, spans, strict=True))
        return [placed.get(i, (0, 0)) for i in range(len(pieces))]

    def _places(self, skeleton: str, pieces: Sequence[Piece]) -> tuple[list[int], list[str]]:
        """The pieces in the order of their words, and what stands around and between those.

        Raises `PromptError` for a text whose word is not there, or not in its order.
        """
        order: list[int] = []
        literals = [""]
        done = 0
        seen: set[int] = set()
        latest = -1
        for word in WORDS.finditer(skeleton):
            i = int(word[1])
            if i >= len(pieces) or (i in seen and not pieces[i].called):
                continue  # a template that says it twice: the first counts
            seen.add(i)
            literals[-1] += skeleton[done : word.start()]
            done = word.end()
            if pieces[i].called:
                literals[-1] += pieces[i].text
                continue
            # Templates may move the system messages, and no others.
            if pieces[i].role != "system":
                if i < latest:
                    raise self._lost(pieces[i], "moves")
                latest = i
            order.append(i)
            literals.append("")
        literals[-1] += skeleton[done:]
        for i, piece in enumerate(pieces):
            if i not in seen and piece.text.strip():
                raise self._lost(piece)
        return order, literals

    def _lost(self, piece: Piece, what: str = "leaves out") -> PromptError:
        said = " ".join(self._shown(piece.text).split())[:40]
        says = "calls" if piece.called else "says"
        return PromptError(
            f"{self._told} {what} what message {piece.message + 1} ({piece.role}) {says}: "
            f"{said!r}; put it into a user message, or give the whole prompt as one text"
        )

    def _continued(self, rendered: str, at: int, pieces: Sequence[Piece]) -> list[Span] | None:
        """Those behind the first piece, which ends `at`, if all is as the template wrote before."""
        if not all(piece.alone for piece in pieces):
            return None
        roles = [*(piece.role for piece in pieces), ""]
        literals = [self._between.get(pair) for pair in pairwise(roles)]
        known = [literal for literal in literals if literal is not None]
        if len(known) < len(literals) or not rendered.startswith(known[0], at):
            return None
        spans, begin = [], at + len(known[0])
        for piece, literal in zip(pieces[1:], known[1:], strict=True):
            end = begin + len(piece.text)
            if not rendered.startswith(piece.text + literal, begin):
                return _walk(rendered, at, known, pieces[1:])  # not as it is, then
            spans.append((begin, end))
            begin = end + len(literal)
        return spans if begin == len(rendered) else _walk(rendered, at, known, pieces[1:])

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
            span = _sought(rendered, piece, 0 if piece.role == "system" or piece.called else done)
            if span is None:
                raise self._lost(piece)
            spans.append(span)
            if piece.role != "system" and not piece.called:
                done = span[1]
        return spans


def _walk(
    rendered: str, at: int, literals: Sequence[str], pieces: Sequence[Piece]
) -> list[Span] | None:
    """The spans of texts between literals, if from `at` on that is all that is rendered."""
    if not rendered.startswith(literals[0], at):
        return None
    at += len(literals[0])
    spans: list[Span] = []
    tried: list[Iterator[int]] = []
    steps = PATIENCE * (len(pieces) + PATIENCE)
    while len(spans) < len(pieces) or at < len(rendered):
        i = len(spans)
        if len(tried) == i < len(pieces):
            tried.append(_ends(rendered, at, pieces[i]))
        for end in tried[i] if i < len(tried) else ():
            steps -= 1
            if steps < 0:
                return None
            if rendered.startswith(literals[i + 1], end):
                spans.append((at, end))
                at = end + len(literals[i + 1])
                break
        else:
            # What one text keeps of its end may be how the next begins: back to that one.
            del tried[i:]
            if not spans:
                return None
            at = spans.pop()[0]
    return spans


def _ends(rendered: str, at: int, piece: Piece) -> Iterator[int]:
    """Where a text that begins at a place may end, whatever became of its blanks."""
    ends = set()
    for kept in _variants(piece):
        end = at + len(kept)
        if end not in ends and rendered.startswith(kept, at):
            ends.add(end)
            yield end
    spaced = _spaced(rendered, at, piece.text)
    if spaced is not None:
        yield spaced
        for _ in range(len(piece.text) - len(piece.text.rstrip())):
            if not rendered[spaced : spaced + 1].isspace():
                break
            spaced += 1
            yield spaced


def _variants(piece: Piece) -> Iterator[str]:
    """A text as it is, and what templates make of one on purpose."""
    text = piece.text
    yield text
    yield from _trimmed(text)
    if piece.role == "assistant":
        for end in THINKING:
            _, found, answer = text.rpartition(end)
            if found:
                yield answer
                yield from _trimmed(answer)
        _, found, answer = text.rpartition(ANSWER[0])
        if found:
            yield from _trimmed(answer.partition(ANSWER[1])[0])
    elif SWITCHES.search(text):
        yield from _trimmed(SWITCHES.sub("", text))
    if not text.isalnum():
        yield json.dumps(text, ensure_ascii=False)[1:-1]  # Jinja's `tojson`, within its quotes
    if not text.strip():
        yield " "


def _trimmed(text: str) -> Iterator[str]:
    core = text.strip()
    start = text.find(core) if core else len(text)
    before, after = text[:start], text[start + len(core) :]
    for left in dict.fromkeys((before, before.lstrip("\n"), before.lstrip(" "), "")):
        for right in dict.fromkeys((after, after.rstrip("\n"), after.rstrip(" "), "")):
            yield left + core + right


def _spaced(rendered: str, at: int, text: str) -> int | None:
    """Where a text that begins at a place ends there, with other blanks between its words."""
    for word in text.split():
        while rendered[at : at + 1].isspace():
            at += 1
        if not rendered.startswith(word, at):
            return None
        at += len(word)
    return at


def _sought(rendered: str, piece: Piece, start: int) -> Span | None:
    """Where a text, or what templates make of it on purpose, next ends."""
    cores = dict.fromkeys(kept.strip() for kept in _variants(piece))
    places = [(rendered.find(core, start), len(core)) for core in cores]
    spans = [(place, place + length) for place, length in places if place >= 0]
    text = piece.text.strip()
    place = rendered.find(text.split(None, 1)[0], start) if not spans and text else -1
    for _ in range(PATIENCE):
        if place < 0:
            break
        end = _spaced(rendered, place, text)
        if end is not None:
            return place, end
        place = rendered.find(text.split(None, 1)[0], place + 1)
    return min(spans, key=itemgetter(1), default=None)
