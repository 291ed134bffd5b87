"""Commands in this process: a terminal, an engine for them, answers for them to show."""

import io
from contextlib import nullcontext

import pytest

from engine import Engine, Finished, Generation, GenerationOptions, Progress, TextDelta
from engine.prompts.builder import Prompt


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def take(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> Engine:
    """Have the commands take this engine instead of loading one."""
    for command in ("chat", "generate"):
        monkeypatch.setattr(f"engine.cli.{command}.open_engine", lambda _: nullcontext(engine))
    return engine


def finished(reason: str = "stop", answer: str = "", error: Exception | None = None) -> Finished:
    return Finished(reason, answer, (), 5, 0, 0, 0, 0, 0.0, 0.0, None, 0.0, 1, error=error)


def answer_of(*events: Progress | TextDelta, end: Finished | None = None) -> Generation:
    generation = Generation(Prompt([1]), GenerationOptions())
    for event in events:
        generation.emit(event)
    generation.finish(end or finished())
    return generation
