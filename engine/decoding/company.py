"""Answers that are decoded together: rows of lanes, and the texts that they become."""

import logging
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx

from engine.decoding.answer import Answer, Ending
from engine.decoding.lane import Lane, LaneCache
from engine.decoding.lane_row import LaneRow
from engine.decoding.lanes import Lanes
from engine.decoding.row_sampler import Row, RowSampler
from engine.decoding.sampling import logits_processors
from engine.drafting.drafts import Drafts
from engine.events import FinishReason
from engine.memory.room import Room
from vision_add_ons.cache_views import plain_caches, shift_of

log = logging.getLogger("sightline")


class _Member:
    """An answer that is decoded in a lane, and its text."""

    def __init__(self, answer: Answer, drafts: Drafts | None) -> None:
        self.answer = answer
        self.row = Row(answer.options, answer.seed, answer.kit.vocab_size)
        self._detokenizer = answer.kit.tokenizer.detokenizer
        self._eos = answer.kit.tokenizer.eos_token_ids
        self.left = answer.max_tokens
        """How many tokens it may have yet."""
        self.drafting = None if drafts is None else drafts.of(answer)

    def feed(self, token: int, drafted: bool) -> FinishReason | None:
        """Deal with the next token, as mlx-lm's `stream_generate` does."""
        if self.drafting is not None:
            self.drafting.said(token)
        logprob, alternatives = self.row.next()
        self.answer.drafted += drafted
        ended: FinishReason | None = None
        self.left -= 1
        if token in self._eos:
            ended = "stop"
        else:
            self._detokenizer.add_token(token)
            if not self.left:
                ended = "length"
        if ended is not None:
            self._detokenizer.finalize()
        text = self._detokenizer.last_segment
        return self.answer.feed(token, text, ended, logprob, alternatives)


class Company:
    """For the engine's thread alone."""

    def __init__(self, model: Any, room: Room, drafts: Drafts | None = None) -> None:
        """`room` bounds what rows are padded by; `drafts` serve an answer while it is alone."""
        self._model = model
        self._drafts = drafts
        self._room = room
        self._lanes = Lanes(model, room)
        self._members: dict[int, _Member] = {}

    def __len__(self) -> int:
        return len(self._members)

    @property
    def answers(self) -> list[Answer]:
        """Those under way."""
        return [member.answer for member in self._members.values()]

    def share_with(self, answer: Answer) -> None:
        """Have the one that begins most as `answer` does leave it what it holds."""
        shared = {name: member.answer.shares(answer) for name, member in self._members.items()}
        most = max(shared, key=shared.__getitem__, default=0)
        if shared.get(most):
            self._members[most].answer.share(partial(self._lanes.take, most))

    def join(self, answer: Answer, last: mx.array, embedding: mx.array | None) -> None:
        """Decode an answer too, from its prompt's `last` token, [1], on.

        Its KV caches hold the tokens before that one. `embedding` is what the token is run with if
        it is an image's, [1, hidden_size]. Raises what the decoder raises.
        """
        assert answer.kv is not None
        views, answer.kv = answer.kv, None  # the lane's, from now on
        plain, shift, first = views, 0, None
        seen = answer.prompt.spans or answer.prompt.bidirectional
        if seen:
            plain, shift = plain_caches(views), shift_of(views)
        caches = [LaneCache(cache, [shift]) for cache in plain]
        members, lane = self._lane([answer], last, caches)
        if seen and _sees_itself_whole(answer):
            first = lane.first(views, embedding)
        self._add(members, lane)
        if first is not None:
            self._deliver(lane, [(name, first) for name in lane.names])

    def join_all(
        self, answers: Sequence[Answer], last: mx.array, caches: Sequence[LaneCache]
    ) -> None:
        """Decode several too, from the `last` tokens of their texts, [answers], on.

        `caches` hold the tokens before those.
        """
        self._add(*self._lane(answers, last, caches))

    def _lane(
        self, answers: Sequence[Answer], last: mx.array, caches: Sequence[LaneCache]
    ) -> tuple[list[_Member], Lane]:
        members = [_Member(answer, self._drafts) for answer in answers]
        rows = []
        for member in members:
            before = member.answer.prompt.tokens[:-1]
            processors = logits_processors(member.answer.options, before)
            guide = member.answer.guide
            rows.append(LaneRow(id(member), len(before), processors, guide))
        sampler = RowSampler([member.row for member in members])
        return members, Lane(self._model, rows, last, caches, sampler)

    def _add(self, members: Sequence[_Member], lane: Lane) -> None:
        self._lanes.add(lane)
        self._members.update(zip(lane.names, members, strict=True))
        for member in members:
            member.answer.read()

    def step(self) -> None:
        """A token of each answer."""
        try:
            failed = self._lanes.settle()
        except BaseException as error:
            self._lanes = Lanes(self._model, self._room)
            failed = [(list(self._members), error)]
        for names, reason in failed:
            self._fail(names, reason)
        for lane in self._lanes:
            try:
                told = lane.step() if self._drafts is None else self._step(lane)
            except BaseException as error:
                self._lose(lane, error)
            else:
                self._deliver(lane, told)

    def _step(self, lane: Lane) -> list[tuple[int, int]]:
        """A token of each of a lane's answers; more of one that is alone where drafts are right."""
        one = self._members[lane.names[0]]
        if len(self._members) > 1 or one.drafting is None:
            return lane.step()
        return one.drafting.step(lane, one.left)

    def _deliver(self, lane: Lane, told: Sequence[tuple[int, int]]) -> None:
        ended: dict[int, Ending] = {}
        beyond = 0
        for i, (name, token) in enumerate(told):
            if name in ended:  # by one of several tokens of its own
                beyond = len(told) - i
                break
            try:
                reason = self._members[name].feed(token, drafted=i >= len(lane.rows))
            except BaseException as error:
                ended[name] = ("error", error)
            else:
                if reason is not None:
                    ended[name] = (reason, None)
        # Whoever waits for a token has it now, and not after the next step is prepared.
        time.sleep(0)
        if not ended:
            return
        leaving = {name: self._members.pop(name) for name in ended}
        try:
            if beyond:
                lane.take_back(beyond)
            for name, caches in self._lanes.leave(lane, ended).items():
                leaving[name].answer.kv = caches
        except BaseException as error:  # they have all their tokens, and end as they would
            log.warning("KV caches of answers that ended are lost: %s", error)
            self._lose(lane, error)
        for name, member in leaving.items():
            if member.drafting is not None:
                member.drafting.close()
            member.answer.end(*ended[name])

    def _lose(self, lane: Lane, error: BaseException) -> None:
        """What its rows hold cannot be computed."""
        if lane in self._lanes:
            self._lanes.lose(lane)
        self._fail(lane.names, error)

    def _fail(self, names: Iterable[int], error: BaseException) -> None:
        for member in [self._members.pop(name) for name in names if name in self._members]:
            member.answer.end("error", error)


def _sees_itself_whole(answer: Answer) -> bool:
    """Whether the prompt's last token is an image's, or sees what stands behind it."""
    prompt = answer.prompt
    ends = [*(span.end for span in prompt.spans), *(end for _, end in prompt.bidirectional)]
    return max(ends, default=0) >= len(prompt.tokens)
