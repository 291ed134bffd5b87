"""Token ids as the texts and bytes that log-probabilities are told with."""

from collections.abc import Iterable, Sequence
from typing import Any

from engine.engine import Engine
from engine.events import TextDelta


class TokenTexts:
    """What single tokens say. Keeps what it was asked once: a vocabulary at most."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # Some tokenizers drop the space that a text begins with; after a token they keep it.
        self._before = engine.tokenize("a")
        self._prefix = engine.detokenize(self._before)
        self._known: dict[int, tuple[str, list[int] | None]] = {}

    def __call__(self, token: int) -> tuple[str, list[int] | None]:
        """The text of a token, and its bytes, None if they are not known.

        As OpenAI does, bytes that are no whole characters are told as `bytes:\\xe2\\x80`.
        """
        known = self._known.get(token)
        if known is None:
            known = self._known[token] = self._look_up(token)
        return known

    def told(self, deltas: Iterable[TextDelta]) -> list[dict[str, Any]]:
        """The log-probabilities of an answer's tokens, as OpenAI tells them."""
        return [
            self._entry(delta.token, delta.logprob)
            | {"top_logprobs": [self._entry(*top) for top in delta.top_logprobs]}
            for delta in deltas
            if delta.token is not None and delta.logprob is not None
        ]

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text, data = self(token)
        return {"token": text, "logprob": logprob, "bytes": data}

    def joined(self, tokens: Sequence[int]) -> str:
        """The text that tokens make, as it goes on from another."""
        return self._engine.detokenize([*self._before, *tokens]).removeprefix(self._prefix)

    def _look_up(self, token: int) -> tuple[str, list[int] | None]:
        data = self._engine.token_bytes(token)
        if data is None:
            return "\ufffd", None
        try:
            return data.decode(), list(data)
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data), list(data)
