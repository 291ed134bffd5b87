"""Holds an answer's calls to their form from the mark on that begins one, and nothing else."""

import logging

import mlx.core as mx
import numpy as np

from engine.decoding.drawn import DrawnToken
from engine.decoding.guide import AnswerGuide, Guide
from vision_add_ons.errors import OptionError

log = logging.getLogger("sightline")


class CallGuide:
    """Follows one answer that may call tools. For the engine's thread alone.

    Outside calls nobody waits for a token to draw the next: whether the latest one is the mark, and
    what may follow it then, is left to the device, which is some microseconds' work. One step later
    the token is known, since whoever asked has it, and the call's guide goes on from there.
    """

    def __init__(self, mark: int, call: Guide, closed: bool, limit: AnswerGuide | None) -> None:
        """`mark` is the token that begins a block of calls. `call` guides one from there; it is
        not used up. `closed` says whether such a block has an end of its own, with the answer going
        on behind it. `limit` bounds the answer's thoughts, if they are bounded: it has to see every
        token outside calls.
        """
        self._mark, self._begin, self._closed, self._limit = mark, call, closed, limit
        self._first: mx.array | None = None
        """What may stand behind a mark."""
        self._unseen: mx.array | None = None
        """The latest token, [1], as long as nobody has looked at it."""
        self._call: Guide | None = None
        """What guides the block that is at work."""

    @property
    def error(self) -> OptionError | None:
        """Why it cannot go on: never. A call that cannot be guided any more is let go."""
        return None if self._limit is None else self._limit.error

    def after(self, token: DrawnToken | None) -> mx.array | None:
        """Which tokens may follow, as `Guide.after` tells it."""
        if token is None:
            return None if self._limit is None else self._limit.after(None)
        if self._unseen is not None:
            seen, self._unseen = int(np.array(self._unseen)[0]), None
            if seen == self._mark:
                self._call = self._begin.copy()
                self._call.take(seen)
        if self._call is not None:
            self._call.take(token.value)
            if not self._ended(self._call):
                return self._call.allowed()
            self._call = None
        elif self._limit is not None and token.value != self._mark:
            return self._limit.after(token)
        self._unseen = token.array
        if self._first is None:
            begun = self._begin.copy()
            begun.take(self._mark)
            self._first = begun.allowed()
            assert self._first is not None
        return mx.logical_or(token.array != self._mark, self._first)

    def _ended(self, call: Guide) -> bool:
        if call.error is not None:
            log.debug("a call goes on without its schema: %s", call.error)
        return call.error is not None or (self._closed and call.whole)
