"""Answers with thoughts: what is told, bounded, written back and found again."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from support import gemma4_templates as gemma4
from support import published_qwen_templates as published
from support import scripted
from support.at_once import all_at_once

from engine import (
    Engine,
    GenerationOptions,
    OptionError,
    PromptError,
    Request,
    Schema,
    TextDelta,
    load,
)


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


ENDLESS = {**scripted.THINKS, " so": " so"}
"""A thought without an end."""

HYBRID = published.QWEN35.replace(
    "assistant\\n<think>\\n' }}\n  {%- if enable", "assistant\\n' }}\n  {%- if enable"
).replace("{{- '\\n</think>\\n\\n' }}", "{{- '<think>\\n\\n</think>\\n\\n' }}")
"""Qwen3's first: an answer begins its thoughts itself, or is told that they are over."""


@pytest.fixture(scope="module")
def endless_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    script = {**ENDLESS, "\n": "<think>", "<think>": "Hm"}
    return scripted.save(tmp_path_factory.mktemp("endless") / "model", HYBRID, script)


@pytest.fixture(scope="module", params=[1, 4], ids=["alone", "parallel"])
def endless(endless_folder: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with load(endless_folder, parallel=request.param) as engine:
        yield engine


WELL = [{"role": "user", "content": "Well?"}]


@pytest.mark.parametrize("most", [0, 1, 5])
def test_a_thought_ends_in_time(endless: Engine, most: int) -> None:
    options = GenerationOptions(max_thinking_tokens=most, max_tokens=30, logprobs=True)
    deltas = list(endless.generate(WELL, options=options))
    end: Any = deltas[-1]
    assert end.reasoning == ("Hm" + " so" * (most - 1) if most else "")
    assert (end.answer, end.finish_reason, end.reasoning_tokens) == ("Yes sir", "stop", most)
    assert all(d.logprob is not None for d in deltas if isinstance(d, TextDelta) and d.token)


def test_a_thought_that_is_cut_off(endless: Engine) -> None:
    chat = endless.chat(options=GenerationOptions(max_tokens=4))
    end = chat.send("Well?").result()
    assert (end.reasoning, end.answer, end.finish_reason) == ("Hm so so", "", "length")
    assert (end.answer_tokens, end.reasoning_tokens) == ((), 3)
    assert (chat.messages[-1].reasoning, chat.messages[-1].text) == ("Hm so so", "")
    assert chat.send("Go on?", options=OFF).result().answer == "Yes sir"


@pytest.mark.parametrize("thinking", [None, True, False])
def test_a_schema_holds_behind_the_thought(endless: Engine, thinking: bool | None) -> None:
    options = GenerationOptions(
        schema=Schema.regex("[<>bc]{9}"),
        thinking=thinking,
        max_thinking_tokens=3,
        max_tokens=60,
    )
    end = endless.generate(WELL, options=options).result()
    assert end.finish_reason == "stop"
    assert re.fullmatch("[<>bc]{9}", end.answer)
    assert end.reasoning == ("" if thinking is False else "Hm so so")


def test_a_schema_s_thought_needs_its_end(endless: Engine) -> None:
    """However much the model would like to end there: nothing is no answer."""
    (eos,) = endless.tokenize("<|im_end|>")
    options = GenerationOptions(
        schema=["yes"], logit_bias={eos: 100.0}, max_thinking_tokens=3, max_tokens=20
    )
    end = endless.generate(WELL, options=options).result()
    assert (end.answer, end.reasoning_tokens, end.finish_reason) == ("yes", 3, "stop")
    options = replace(options, max_thinking_tokens=None, logit_bias={})
    end = endless.generate(WELL, options=options).result()
    assert (end.answer, end.finish_reason) == ("", "length")


def test_each_is_what_it_is_alone(endless_folder: Path) -> None:
    """With others that think longer, are held to something, and do not think."""
    asked = [
        GenerationOptions(max_tokens=40, max_thinking_tokens=i, schema=schema, thinking=thinking)
        for i, (schema, thinking) in enumerate(
            [(None, None), (["yes"], True), (None, False), (["no"], False), (None, True)]
        )
    ]
    with load(endless_folder) as engine:
        alone = [engine.generate(WELL, options=o).result() for o in asked]
    with load(endless_folder, parallel=5) as engine:
        with all_at_once(engine):
            together = [engine.generate(WELL, options=o) for o in asked]
        ends = [generation.result() for generation in together]
    for end, other in zip(ends, alone, strict=True):
        assert (end.tokens, end.answer, end.reasoning) == (
            other.tokens,
            other.answer,
            other.reasoning,
        )
    assert [end.answer for end in ends] == ["Yes sir", "yes", "Yes sir", "no", "Yes sir"]


def test_stop_strings_look_at_what_is_said(engine: Engine) -> None:
    end = engine.generate(WELL, options=GenerationOptions(stop=["Hm", "</think>", " s"])).result()
    assert (end.reasoning, end.answer, end.stop_string) == ("Hm so", "Yes", " s")
    assert end.finish_reason == "stop_string"


def test_what_an_answer_says_of_thoughts_opens_none(endless: Engine) -> None:
    """A question that holds the mark is a question; see what the template wrote behind it."""
    for said in ("<think>", "<|im_start|>assistant\n<think>\n"):
        asked = [{"role": "user", "content": said}]
        end = endless.generate(asked, options=OFF).result()
        assert (end.reasoning, end.answer) == ("", "Yes sir")


@pytest.mark.parametrize("when", ["thinking", "answering"])
def test_cancelled(endless: Engine, when: str) -> None:
    """What was thought is told; of a question without an answer nothing is kept."""
    most = 4 if when == "answering" else None
    chat = endless.chat(options=GenerationOptions(max_thinking_tokens=most, max_tokens=200))
    generation = chat.send("Well?")
    for event in generation:
        if isinstance(event, TextDelta) and (event.text or (event.reasoning and most is None)):
            generation.cancel()
            break
    end = generation.result()
    assert end.reasoning.startswith("Hm")
    assert (len(chat.messages) == 2) == bool(end.answer)


GEMMA = {"\n": "<|channel>", "<|channel>": "thought", "thought": "Hm", "Hm": " so", " so": " so"}
GEMMA |= {"<channel|>": "Yes", "Yes": " sir", " sir": "<turn|>"}


@pytest.mark.parametrize("parallel", [1, 3])
def test_marks_of_several_tokens(parallel: int, tmp_path: Path) -> None:
    """Gemma 4's: its templates think only when asked to."""
    added = ("<pad>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>", "thought")
    template = gemma4.GEMMA4_WITHOUT_THOUGHT
    folder = scripted.save(tmp_path, template, GEMMA, added=added, end="<turn|>")
    options = GenerationOptions(max_tokens=40, max_thinking_tokens=3)
    with load(folder, parallel=parallel) as engine:
        chat = engine.chat(options=options)
        end = chat.send("Well?").result()
        assert (end.reasoning, end.answer) == ("", "Yes sir")
        for schema, answer in ((None, "Yes sir"), (["no"], "no")):
            end = chat.send(
                "Well?", options=replace(options, thinking=True, schema=schema)
            ).result()
            assert (end.reasoning, end.answer) == ("Hm so so", answer)
            assert end.reasoning_tokens == 3
        assert end.cached_tokens > 20


@pytest.mark.parametrize(
    ("template", "thinking", "saying"),
    [
        (published.QWEN3_THINKING, False, "begins every answer with a thought; max_thinking"),
        (published.QWEN3, True, "no switch"),
        (published.QWEN3, False, None),
        (published.QWEN3_THINKING, True, None),
    ],
)
def test_templates_without_a_switch(
    template: str, thinking: bool, saying: str | None, tmp_path: Path
) -> None:
    with load(scripted.save(tmp_path, template, scripted.THINKS)) as engine:
        options = GenerationOptions(thinking=thinking)
        if saying is None:
            assert engine.generate(WELL, options=options).result().answer.endswith("Yes sir")
            return
        with pytest.raises(OptionError, match=f"^thinking: .*{saying}"):
            engine.generate(WELL, options=options)
        with pytest.raises(OptionError, match=r"^thinking: "):
            engine.chat(options=options).send("Well?")


def test_what_goes_with_messages_alone(engine: Engine, letters: Engine) -> None:
    with pytest.raises(OptionError, match=r"^thinking goes with messages"):
        engine.generate("Well?", options=GenerationOptions(thinking=True))
    with pytest.raises(PromptError, match=r"^template goes with messages"):
        engine.submit(Request("Well?", template={"enable_thinking": False}))
    with pytest.raises(OptionError, match="enable_thinking as 'x'"):
        engine.submit(Request(WELL, (), OFF, template={"enable_thinking": "x"}))
    told = Request(WELL, template={"enable_thinking": False})
    assert engine.submit(told).result().reasoning == ""
    with pytest.raises(OptionError, match=r"^thinking: this model knows no thoughts"):
        letters.generate(WELL, options=GenerationOptions(thinking=True))
    fine = GenerationOptions(thinking=False, max_thinking_tokens=1, max_tokens=2)
    assert letters.generate(WELL, options=fine).result().reasoning == ""


def test_a_kept_thought_is_read_again_as_it_was(tmp_path: Path) -> None:
    """Behind the last question templates keep it: what a call of a tool was thought of with."""
    with load(scripted.save(tmp_path, published.QWEN35, scripted.THINKS)) as engine:
        end = engine.generate(WELL).result()
        thought: Any = {"role": "assistant", "content": end.answer, "tokens": end.answer_tokens}
        thought |= {"reasoning_content": end.reasoning}
        told = {"role": "tool", "content": "12"}
        after = engine.generate([*WELL, thought, told]).result()
        # All that it thought and said, up to what the model has not read: the token that ended it.
        assert after.cached_tokens == end.prompt_tokens + len(["Hm", "so"]) - 1 + 1
