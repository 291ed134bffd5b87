"""Messages become token ids, at the cost of what is new in them.

What stood in an earlier prompt is neither looked for nor encoded again: the ids, and the places of
the messages' texts, are those of the prompt that shares the longest beginning with this one.
"""

import re
import threading
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from operator import itemgetter
from typing import Any

from engine.memory.prompt_index import common_prefix
from engine.prompts.chat_template import ChatTemplate
from engine.prompts.messages import Message
from engine.prompts.presence import Piece, Span, TextFinder
from engine.prompts.text_encoder import MOST_TEXT, TextEncoder, check_text
from engine.prompts.thought import Thought, thought_of
from vision_add_ons.token_ids import TokenIds

REMEMBERED = 8
"""Prompts whose ids are known: of the conversations that go on in turns."""

Answer = tuple[int, int, tuple[int, ...]]
"""Where an answer's text begins and ends, and the ids that it was generated as."""

Mark = tuple[int, str]
"""Where an image token stands that a message holds as text, and its text."""


@dataclass(frozen=True)
class EncodedMessages:
    """Token ids, and where among them images belong."""

    tokens: TokenIds
    positions: list[int] | None
    """The indices before which images go; None where the template wrote image tokens itself."""
    typed: list[int]
    """The indices of image tokens that a message holds as text."""
    thought: Thought = "none"
    """How what the template wrote behind the last message ends."""


@dataclass(frozen=True)
class _Known:
    """A prompt that was built, for those that begin as it does."""

    rendered: str
    pieces: Sequence[Piece]
    spans: Sequence[Span]
    """Where the pieces stand in `rendered`."""
    text: str
    """What is rendered, without markers."""
    answers: Sequence[Answer]
    tokens: TokenIds
    starts: "array[int]"
    """The character of `text` that each token begins at."""
    replaced: Sequence[Span]
    """What of `text` has the ids that it was generated as."""


class MessageEncoder:
    """Encodes conversations for one loaded model; any thread may call it.

    `special` says whether the model's processor puts the tokenizer's special tokens around a
    prompt that does not bring its own BOS, as those of transformers do. `decode` makes texts of
    ids, of which there are `vocab_size`. `thought` are the texts that begin and end a thought, if
    the model knows any.
    """

    def __init__(
        self,
        template: ChatTemplate,
        encoder: TextEncoder,
        decode: Callable[[Sequence[int]], str],
        vocab_size: int,
        special: bool,
        thought: tuple[str, str] | None = None,
    ) -> None:
        self._template = template
        self._encoder = encoder
        self._decode = decode
        self._vocab_size = vocab_size
        self._special = special
        self._thought = thought
        self._finder = TextFinder(template.told, template.shown)
        self._known: deque[_Known] = deque()
        self._lock = threading.Lock()

    def encode(
        self,
        messages: Sequence[Message],
        variables: Mapping[str, Any] | None = None,
        context: int | None = None,
    ) -> EncodedMessages:
        """The ids of messages as the chat template writes them, which is told `variables` too.

        Answers keep the ids that they were generated as where the text is the same to the letter.
        Raises `PromptError`, or `ContextExceeded` for a text of far more tokens than `context`.
        """
        rendered = self._template.render(messages, variables=variables)
        pieces = self._template.pieces(messages)
        known, shared = self._nearest(rendered)
        spans = self._finder.locate(
            rendered,
            pieces,
            _kept(known, pieces, shared) if known is not None else [],
            lambda words: self._template.render(messages, words, variables),
        )
        text, own = rendered, spans
        places: Sequence[int] = ()
        marks: Sequence[Mark] = ()
        if self._template.private in rendered:
            plain = _Plain(rendered, self._template)
            text, places, marks = plain.text, plain.places, plain.typed
            own = [(plain.moved(begin), plain.moved(end)) for begin, end in spans]
        check_text(text)
        self._encoder.check_fits(text, context)
        sure = () if known is None else known.answers
        answers = self._answers(messages, pieces, own, {id(ids) for _, _, ids in sure})
        if known is not None and not (text is rendered and known.text is known.rendered):
            shared = _shared(known.text, text)
        if any(piece.called for piece in pieces):
            answers = sorted([*answers, *self._calling(messages, pieces, own, text)])
        before, behind = self._around(text)
        thought: Thought = "none"
        if self._thought is not None:
            thought = self._ends(rendered, pieces, spans, self._thought)
        if self._encoder.cuts is None:
            return self._by_parts(text, places, marks, before, behind, thought)
        made = self._continue(known, shared, rendered, pieces, spans, text, answers)
        self._remember(made, known)
        positions = [bisect_left(made.starts, place) for place in places]
        typed = [bisect_left(made.starts, place) for place, _ in marks]
        borders = [*places, *(place for place, _ in marks)]
        for index, place in zip([*positions, *typed], borders, strict=True):
            if place != (made.starts[index] if index < len(made.starts) else len(made.text)):
                return self._by_parts(text, places, marks, before, behind, thought)
        return EncodedMessages(
            TokenIds.joined((before, made.tokens, behind)),
            [len(before) + i for i in positions] or None,
            [len(before) + i for i in typed],
            thought,
        )

    def _ends(
        self,
        rendered: str,
        pieces: Sequence[Piece],
        spans: Sequence[Span],
        marks: tuple[str, str],
    ) -> Thought:
        """How a prompt ends: what a message says of thoughts is only said."""
        told = (end for piece, (_, end) in zip(pieces, spans, strict=True) if not piece.called)
        return thought_of(rendered[max(told, default=0) :], marks)

    def _around(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        at = 0
        for mark in self._template.marks:  # images may stand before BOS
            while text.startswith(mark, at):
                at += len(mark)
        if self._special and not self._encoder.brings_bos(text, at):
            return self._encoder.around
        return (), ()

    def _nearest(self, rendered: str) -> tuple[_Known | None, int]:
        """The known prompt that shares the longest beginning with this one, and its length."""
        best, most = None, 0
        with self._lock:
            known = list(self._known)
        for one in known:
            shared = _shared(one.rendered, rendered)
            if shared > most:
                best, most = one, shared
        return best, most

    def _remember(self, made: _Known, before: _Known | None) -> None:
        with self._lock:
            if before is not None and made.rendered.startswith(before.rendered):
                self._known = deque(one for one in self._known if one is not before)
            self._known.append(made)
            while len(self._known) > REMEMBERED or (
                len(self._known) > 1 and sum(len(one.text) for one in self._known) > MOST_TEXT
            ):
                self._known.popleft()

    def _answers(
        self,
        messages: Sequence[Message],
        pieces: Sequence[Piece],
        spans: Sequence[Span],
        sure: Collection[int],
    ) -> list[Answer]:
        """Those whose ids are known and may be this model's, in order.

        Tuples of ids that are known to be this model's are told by their `id`s in `sure`.
        """
        answers = []
        for piece, (begin, end) in zip(pieces, spans, strict=True):
            tokens = messages[piece.message].tokens
            if not tokens or not piece.alone or begin == end:
                continue
            if id(tokens) in sure or max(tokens) < self._vocab_size:
                answers.append((begin, end, tokens))
        return sorted(answers, key=itemgetter(0, 1))

    def _calling(
        self,
        messages: Sequence[Message],
        pieces: Sequence[Piece],
        spans: Sequence[Span],
        text: str,
    ) -> list[Answer]:
        """Answers that call tools, where the template writes them to the letter as they were
        generated, marks and all: they are looked for between the texts before and behind them."""
        texts = [
            (piece.message, begin, end)
            for piece, (begin, end) in zip(pieces, spans, strict=True)
            if not piece.called and piece.role != "system"
        ]
        answers = []
        for i, message in enumerate(messages):
            tokens = message.tokens
            if not (tokens and message.tool_calls) or max(tokens) >= self._vocab_size:
                continue
            after = max((end for at, _, end in texts if at < i), default=0)
            before = min((begin for at, begin, _ in texts if at > i), default=len(text))
            raw = self._decode(tokens)
            place = text.find(raw, after, before)
            if raw and place >= 0:
                answers.append((place, place + len(raw), tokens))
        return answers

    def _continue(
        self,
        known: _Known | None,
        shared: int,
        rendered: str,
        pieces: Sequence[Piece],
        spans: Sequence[Span],
        text: str,
        answers: Sequence[Answer],
    ) -> _Known:
        """The ids of a text that shares its beginning with a known one's."""
        index = done = 0
        if known is not None:
            index = self._cut(known, shared, answers)
            done = known.starts[index] if index else 0
        ids, begins = self._encoder.encode_with_starts(text[done:] if done else text)
        tokens = array("i", ids)
        starts = array("q", [done + start for start in begins] if done else begins)
        replaced: list[Span] = []
        if index and known is not None:
            tokens = known.tokens[:index].copy() + tokens
            starts = known.starts[:index] + starts
            replaced = [span for span in known.replaced if span[1] <= done]
        own = [answer for answer in answers if answer[0] >= done]
        replaced += self._replace(tokens, starts, own, len(text))
        return _Known(rendered, pieces, spans, text, answers, TokenIds(tokens), starts, replaced)

    def _cut(self, known: _Known, shared: int, answers: Sequence[Answer]) -> int:
        """How many of a known prompt's ids begin a text that shares so many characters with it."""
        assert self._encoder.cuts is not None
        for pair in zip_longest(known.answers, answers):
            if pair[0] != pair[1]:
                shared = min([shared, *(answer[0] for answer in pair if answer is not None)])
                break
        for begin, end, _ in reversed(known.answers):
            if begin < shared < end:
                shared = begin
        # So that any token that begins before there ends, and the character behind it is, within
        # what is shared.
        place = shared - self._encoder.cuts.longest
        index = self._encoder.cuts.before(known.text, known.tokens, known.starts, place)
        for begin, end in reversed(known.replaced):
            if begin <= known.starts[index] < end:
                index = self._encoder.cuts.before(known.text, known.tokens, known.starts, begin)
        return index

    def _replace(
        self, tokens: "array[int]", starts: "array[int]", answers: Sequence[Answer], length: int
    ) -> list[Span]:
        """Put the ids that answers were generated as in place of those their text encodes to.

        A model does not always write a text with the tokens that a tokenizer would take, and the
        KV cache holds what it wrote. Only where the decoded prompt stays the same to the letter.
        Returns where that was done.
        """
        replaced = []
        for begin, end, ids in reversed(answers):
            first, last = bisect_left(starts, begin), bisect_left(starts, end)
            generated = array("i", ids)
            # The space before a word may belong to the word's token.
            for i in (first, first - 1):
                if i < 1 or tokens[i:last] == generated:
                    break
                before = tokens[i - 1 : i]  # decoders treat the first token in a way of its own
                if self._decode(before + generated) == self._decode(before + tokens[i:last]):
                    place = starts[i] if i < len(starts) else length
                    tokens[i:last] = generated
                    starts[i:last] = array("q", [place] * len(generated))
                    replaced.append((place, end))
                    break
        return replaced[::-1]

    def _by_parts(
        self,
        text: str,
        places: Sequence[int],
        marks: Sequence[Mark],
        before: tuple[int, ...],
        behind: tuple[int, ...],
        thought: Thought,
    ) -> EncodedMessages:
        """Encode the text between images and typed tokens piece by piece: no token spans one."""
        tokens = list(before)
        positions: list[int] = []
        typed: list[int] = []
        done = 0
        borders = [*((place, "") for place in places), *marks]
        for place, mark in sorted(borders, key=itemgetter(0)):
            tokens += self._encoder.encode(text[done:place])
            (typed if mark else positions).append(len(tokens))
            tokens += self._encoder.encode(mark) if mark else []
            done = place + len(mark)
        tokens += self._encoder.encode(text[done:])
        return EncodedMessages(TokenIds([*tokens, *behind]), positions or None, typed, thought)


class _Plain:
    """A rendered text with image tokens in place of stand-ins, and without markers."""

    def __init__(self, rendered: str, template: ChatTemplate) -> None:
        self.text = rendered
        self.places: list[int] = []
        """Where a marker stood, in order."""
        self.typed: list[Mark] = []
        self._edits: list[int] = []
        self._moves: list[int] = [0]
        out: list[str] = []
        done = length = 0
        for found in re.finditer(template.private + "-[it][0-9]+\ue001", rendered):
            out.append(rendered[done : found.start()])
            length += found.start() - done
            mark = template.stand_ins.get(found[0])
            if mark is None:
                self.places.append(length)
            else:
                self.typed.append((length, mark))
                out.append(mark)
                length += len(mark)
            done = found.end()
            self._edits.append(done)
            self._moves.append(length - done)
        self.text = "".join([*out, rendered[done:]])

    def moved(self, place: int) -> int:
        """Where in `text` a place of what was rendered is; not within what was replaced."""
        index = bisect_left(self._edits, place + 1)
        return place + self._moves[index]


def _shared(earlier: str, later: str) -> int:
    """How many leading characters two texts share: mostly all of the earlier one's."""
    return len(earlier) if later.startswith(earlier) else common_prefix(earlier, later)


def _kept(known: _Known, pieces: Sequence[Piece], shared: int) -> list[Span]:
    """The places of the first pieces, as far as they are those of a known prompt's beginning."""
    spans: list[Span] = []
    done = 0
    for piece, old, span in zip(pieces, known.pieces, known.spans, strict=False):
        if piece != old or span[1] > shared or (not piece.called and span[0] < done):
            break
        spans.append(span)
        done = max(done, span[1])
    return spans
