"""A small model that guesses what a large one will say."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx_lm.generate import generation_stream

from engine.memory import kv_state
from engine.memory.prompt_cache import PromptCache, Start
from engine.memory.prompt_index import common_prefix
from engine.prompts.builder import Prompt
from vision_add_ons.token_ids import TokenIds

if TYPE_CHECKING:
    from model_kit.kit import ModelKit

CHUNK = 2048
"""Tokens of a history that are read at once; a cancelled answer waits for one chunk."""

BESIDE = 32
"""Tokens that are read along with the latest one, and not before it."""

WITHOUT_END = 2**31
"""Positions of a model whose context has no known limit."""


class DraftModel:
    """What it makes of one answer, in KV caches of its own. For the engine's thread alone.

    It reads the words alone, at its own positions: pictures are not shown to it.
    """

    def __init__(
        self,
        kit: "ModelKit",
        prompts: PromptCache,
        vocab_size: int,
        owner: object,
        wanted: Callable[[], bool],
    ) -> None:
        """`prompts` keeps its KV caches, and `vocab_size` is how many ids both models know; once
        the answer is not `wanted` any more, no more is read for it."""
        self._kit, self._prompts, self._owner, self._wanted = kit, prompts, owner, wanted
        self._vocab_size = vocab_size
        self._context = kit.max_context or WITHOUT_END
        self._known = 0
        """How many tokens of the history are ids that both know."""
        self._start: Start | None = None
        self._kv: list[Any] = []
        self._held: list[int] = []
        """The tokens in the caches, but for those that were `_run`."""
        self._run: mx.array | None = None
        """The latest token and what was drafted behind it, as far as they are in the caches."""
        self._marked: kv_state.Snapshot | None = None
        """Caches that cannot be trimmed, as they were with the first of those."""

    def ready(self, history: Sequence[int]) -> bool:
        """Whether it has read what was said: not beyond its context, nor ids that it does not know,
        nor if the answer was cancelled meanwhile."""
        if len(history) >= self._context:
            return False
        if max(history[self._known :], default=0) >= self._vocab_size:
            return False
        self._known = len(history)
        return self._read(history)

    def draft(self, history: Sequence[int], last: mx.array, count: int) -> mx.array:
        """What it would say behind `history` and the `last` token, [1]: its likeliest, `count` ids
        or as many as its context has room for."""
        count = min(count, self._context - len(history))
        rest = history[len(self._held) :]
        model: Any = self._kit.text_model
        with mx.stream(generation_stream):
            # It is looked up before anybody has seen it: an id that it does not know, it misreads.
            last = mx.minimum(last, self._vocab_size - 1).astype(last.dtype)
            token, run = last, [last]
            tokens = mx.concatenate([mx.array(list(rest), dtype=last.dtype), last])
            for i in range(count):
                logits = model(tokens[None], cache=self._kv)[:, -1, : self._vocab_size]
                token = tokens = mx.argmax(logits, axis=-1).astype(last.dtype)
                mx.async_eval(token)
                run.append(token)
                if not i:
                    self._held += rest
                    trims = kv_state.trims_after(self._kv, count)
                    self._marked = None if trims else kv_state.snapshot(self._kv)
            self._run = mx.concatenate(run[:-1])
            drafted: mx.array = mx.concatenate(run[1:])
        return drafted

    def _read(self, history: Sequence[int]) -> bool:
        """Have in the caches what is known to have been said, but for the latest."""
        if self._start is None:
            prompt = Prompt(tokens=TokenIds(history))
            self._start = self._prompts.take(prompt, None, self._owner)
            self._kv = self._start.kv or self._kit.make_cache()
            self._held = list(history[: self._start.length])
            self._start.kv = None
        self._go_back(history)
        model: Any = self._kit.text_model
        while (left := len(history) - len(self._held)) > BESIDE:
            if not self._wanted():
                return False
            chunk = history[len(self._held) :][: min(left, CHUNK)]
            with mx.stream(generation_stream):
                model(mx.array(list(chunk))[None], cache=self._kv)
                mx.eval([cache.state for cache in self._kv])
                mx.clear_cache()
            self._held += chunk
        return True

    def _go_back(self, history: Sequence[int]) -> None:
        """Keep of what was run what the large model said as well."""
        if self._run is None:
            return
        run: list[int] = self._run.tolist()  # type: ignore[assignment]
        self._run = None
        held = len(self._held)
        said = common_prefix(run, history[held : held + len(run)])
        if said < len(run):
            if self._marked is not None:
                said = min(said, 1)  # no other place behind `held` can be come back to
            if said or self._marked is None:
                length = held + said
                self._kv = kv_state.shortened(self._kv, {length: self._marked or []}, length)
            else:
                self._kv, self._held = self._kit.make_cache(), []
        self._held += run[:said]

    def close(self, history: Sequence[int]) -> None:
        """Keep its KV caches, for later answers: what they hold of `history`, all that was said."""
        self._go_back(history)
        if self._start is not None and self._held:
            self._prompts.put(TokenIds(self._held), self._kv, None, self._start)
        self._kv = []
