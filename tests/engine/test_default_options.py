"""The options that a checkpoint asks for itself: told by the engine, used by the commands."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.commands import take

from engine import Engine, GenerationOptions, load
from engine.cli import main

ASKS = {"do_sample": True, "temperature": 1.3, "top_k": 7, "top_p": 0.9, "min_p": 0.01}
ASKED = GenerationOptions(temperature=1.3, top_k=7, top_p=0.9, min_p=0.01, repetition_penalty=1.2)
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def drawing(letters_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A model whose checkpoint wants tokens drawn."""
    folder = tmp_path_factory.mktemp("drawing") / "model"
    shutil.copytree(letters_folder, folder)
    asks = {**ASKS, "repetition_penalty": 1.2, "eos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(asks))
    with load(folder) as engine:
        yield engine


def test_an_engine_tells_them(drawing: Engine, letters: Engine) -> None:
    assert drawing.default_options == ASKED
    assert letters.default_options == GenerationOptions()


def test_python_stays_greedy(drawing: Engine) -> None:
    greedy = drawing.generate(MESSAGES, options=GenerationOptions(max_tokens=20)).result()
    plain = drawing.chat().send("hello", options=replace(GenerationOptions(), max_tokens=20))
    assert plain.result().tokens == greedy.tokens
    drawn = drawing.generate(MESSAGES, options=replace(ASKED, max_tokens=20, seed=1)).result()
    assert drawn.tokens != greedy.tokens


@pytest.mark.parametrize(
    ("flags", "changes"),
    [
        ([], {}),
        (["--temperature", "0"], {"temperature": 0.0}),
        (["--top-k", "0", "--repetition-penalty", "1"], {"top_k": 0, "repetition_penalty": 1.0}),
    ],
)
def test_flags_override_one_by_one(
    drawing: Engine,
    flags: list[str],
    changes: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    take(monkeypatch, drawing)
    options = replace(ASKED, **{"max_tokens": 20, "seed": 5, **changes})  # type: ignore[arg-type]
    expected = drawing.generate(MESSAGES, options=options).result().answer
    given = ["--prompt", "hello", "--max-tokens", "20", "--seed", "5", *flags]
    assert main(["generate", *given]) == 0
    assert capsys.readouterr().out == expected


def test_a_conversation_in_the_terminal_has_them(
    drawing: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    take(monkeypatch, drawing)
    options = replace(ASKED, max_tokens=20, seed=6)
    expected = drawing.generate(MESSAGES, options=options).result().answer
    lines = iter(["hello"])

    def read(_: str) -> str:
        for line in lines:
            return line
        raise EOFError

    monkeypatch.setattr("builtins.input", read)
    assert main(["chat", "--max-tokens", "20", "--seed", "6"]) == 0
    assert capsys.readouterr().out == expected + "\n"


def test_as_many_tokens_as_the_context_holds(letters: Engine) -> None:
    options = GenerationOptions(max_tokens=None, max_context=40, logit_bias={2: -100.0})
    end = letters.generate("hello", options=options).result()
    assert end.finish_reason == "length"
    assert end.prompt_tokens + len(end.tokens) == 40
