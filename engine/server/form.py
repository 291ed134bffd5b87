"""What chat and text completions share of how an answer is told; see `streaming.Form`."""

from collections.abc import Iterable

from engine.server.schemas import Completions
from engine.server.streaming import Json
from engine.server.tokens import TokenTexts


class CompletionsForm:
    """One answer of a response, in OpenAI's two older protocols."""

    def __init__(self, asked: Completions, tokens: TokenTexts, base: Json, index: int = 0) -> None:
        """`base` is what all chunks begin with; `index` is which answer this is, from 0."""
        self._tokens, self._base, self._index = tokens, base, index
        self._usage = bool(asked.stream_options and asked.stream_options.include_usage)

    def start(self) -> Iterable[Json]:
        return ()

    def total(self, usage: Json) -> Iterable[Json]:
        return [{**self._base, "choices": [], "usage": usage}] if self._usage else ()

    def _chunk_of(self, choice: Json) -> Json:
        """A chunk of a stream, whose last one alone tells the usage, if that was asked for."""
        chunk = {**self._base, "choices": [choice]}
        return {**chunk, "usage": None} if self._usage else chunk
