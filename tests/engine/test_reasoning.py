"""Answers with thoughts: what is told, bounded, written back and found again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from support import published_qwen_templates as published
from support import scripted

from engine import Engine, GenerationOptions, TextDelta, load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted.save(
        tmp_path_factory.mktemp("thinker") / "model", published.QWEN35, scripted.THINKS
    )


@pytest.fixture(scope="module", params=[1, 3], ids=["alone", "parallel"])
def engine(folder: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with load(folder, parallel=request.param) as engine:
        yield engine


def test_a_thought_is_told_apart(engine: Engine) -> None:
    chat = engine.chat()
    events = list(chat.send("Well?"))
    deltas = [e for e in events if isinstance(e, TextDelta)]
    assert [d.reasoning for d in deltas if d.reasoning] == ["Hm", " so"]
    assert [d.text for d in deltas if d.text] == ["Yes", " sir"]
    end: Any = events[-1]
    assert (end.reasoning, end.answer) == ("Hm so", "Yes sir")
    assert engine.detokenize(end.tokens) == "Hm so</think>\n\nYes sir"
    assert engine.detokenize(end.answer_tokens) == "Yes sir"
    assert (end.reasoning_tokens, end.completion_tokens) == (2, 6)
    said = chat.messages[-1]
    assert (said.reasoning, said.text, said.tokens) == ("Hm so", "Yes sir", end.answer_tokens)


OFF = GenerationOptions(thinking=False)


def test_switched_off(engine: Engine) -> None:
    end = engine.generate([{"role": "user", "content": "Well?"}], options=OFF).result()
    assert (end.reasoning, end.answer, end.reasoning_tokens) == ("", "Yes sir", 0)
    assert end.answer_tokens == end.tokens
    on = GenerationOptions(thinking=True)
    end = engine.generate([{"role": "user", "content": "Well?"}], options=on).result()
    assert (end.reasoning, end.answer) == ("Hm so", "Yes sir")


def test_a_raw_prompt_is_gone_on_with_as_it_stands(engine: Engine) -> None:
    end = engine.generate("<think>", options=OFF).result()
    assert (end.reasoning, end.answer) == ("", "\nHm so</think>\n\nYes sir")
    assert end.answer_tokens == end.tokens


@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
@pytest.mark.parametrize("thinking", [None, False])
def test_what_is_re_run(family: str, thinking: bool | None, tmp_path: Path) -> None:
    """A template leaves thoughts out of earlier turns: the answer alone is read again, and not the
    prompt that was before it."""
    options = GenerationOptions(thinking=thinking)
    folder = scripted.save(tmp_path / "model", published.QWEN35, scripted.THINKS, family=family)
    with load(folder, cache_dir=tmp_path / "kept") as engine:
        chat = engine.chat("Be brief. " * 9, options=options)
        before = chat.send("Well?").result()
        for question in ("And?", "So?", "Then?"):
            end = chat.send(question).result()
            written = "<think>\n" if thinking is None else "<think>\n\n</think>\n\n"
            assert end.cached_tokens == before.prompt_tokens - len(engine.tokenize(written))
            again = f"Yes sir<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
            new = engine.tokenize(again + "<|im_start|>assistant\n" + written)
            assert end.prompt_tokens - end.cached_tokens == len(new)
            before = end
        chat.save(tmp_path / "chat").result()
    with load(folder, cache_dir=tmp_path / "kept") as engine:
        chat = engine.chat(restore=tmp_path / "chat", options=options)
        assert chat.messages[-1].reasoning == (None if thinking is False else "Hm so")
        end = chat.send("At last?").result()
        assert end.cached_tokens == before.prompt_tokens - len(engine.tokenize(written))
        assert end.disk_tokens == end.cached_tokens


@pytest.mark.parametrize("parallel", [1, 3])
def test_warm_answers_are_those_of_a_cold_engine(parallel: int, tmp_path: Path) -> None:
    """Of a model whose layers keep states, with random weights: where it goes back to counts."""
    folder = scripted.save(tmp_path / "model", published.QWEN35, None, family="qwen3_5")
    options = GenerationOptions(max_tokens=9, max_thinking_tokens=4, logprobs=True)
    with load(folder, parallel=parallel) as warm, load(folder, cache_bytes=0) as cold:
        chat = warm.chat("Be brief. " * 9, options=options)
        for i, question in enumerate(("Well?", "And then?", "So?", "But?")):
            asked = [*chat.messages, {"role": "user", "content": question}]
            deltas = [e for e in chat.send(question) if isinstance(e, TextDelta)]
            other = cold.generate(asked, options=options)
            theirs = [e for e in other if isinstance(e, TextDelta)]
            assert [d.token for d in deltas] == [d.token for d in theirs]
            ours = [d.logprob for d in deltas if d.logprob is not None]
            assert ours == pytest.approx([d.logprob for d in theirs if d.logprob is not None], 1e-4)
            end = chat.last
            assert end is not None
            assert (end.cached_tokens > 90) == (i > 0)
            assert end.reasoning_tokens == 4
