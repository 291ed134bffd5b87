"""Answers that are guessed ahead are what they are without, to the token."""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from support import hybrids, tiny
from support.seeds import SWEEP

from engine import Engine, Finished, GenerationOptions, OptionError, Request, TextDelta, load
from engine.decoding.lane import Lane
from engine.drafting.drafting import Drafting
from engine.drafting.drafts import words
from engine.drafting.lookup import PromptLookup
from engine.drafting.model import DraftModel
from engine.drafting.step_times import ENOUGH, StepTimes
from engine.prompts.builder import Prompt
from engine.schema import Schema
from vision_add_ons.base import ImageSpan
from vision_add_ons.errors import CheckpointNotFound
from vision_add_ons.testing import BOS, WORDS

NEVER_ENDS = {"logit_bias": {2: -100}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("drafting") / "model"
    return tiny.save_of_letters(11, place, max_position_embeddings=8192, head_dim=32)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """Another model of the same words, which is seldom right."""
    place = tmp_path_factory.mktemp("drafting") / "other"
    return tiny.save_of_letters(12, place, num_hidden_layers=1)


@pytest.fixture(scope="module", params=["itself", "other", "lookup"])
def drafted(request: pytest.FixtureRequest, folder: Path, other: Path) -> Iterator[Engine]:
    """An engine that would answer two at once, so that draws are by the same keys with and
    without drafts."""
    draft = {"itself": folder, "other": other, "lookup": "lookup"}[request.param]
    with load(folder, draft=draft, parallel=2) as engine:
        yield engine


def events(engine: Engine, prompt: str, **options: Any) -> tuple[list[TextDelta], Finished]:
    generation = engine.generate(prompt, options=GenerationOptions(**options))
    deltas = [event for event in generation if isinstance(event, TextDelta)]
    return deltas, generation.result()


def prompt_of(seed: int) -> str:
    """Some of it is said twice."""
    chance = random.Random(seed)
    text = "".join(chance.choices("abcdefgh ", k=60))
    return text + text[:40]


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"temperature": 0.4, "seed": 3},
    "filtered": {"temperature": 1.0, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 4},
    "penalized": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    "penalized and drawn": {"repetition_penalty": 1.1, "temperature": 0.7, "seed": 5},
    "biased": {"logit_bias": {40: 3.0, 2: -100}},
    "of a schema": {"schema": Schema.regex("([a-h]{3} ){4}[a-z]+"), "temperature": 0.5, "seed": 6},
    "of choices": {"schema": ["abc abc", "abd abc"]},
}


DRAFTED = [("itself", name) for name in OPTIONS]
DRAFTED += [("other", "drawn"), ("other", "of a schema"), ("lookup", "penalized")]
if SWEEP:
    DRAFTED = [(draft, name) for draft in ("itself", "other", "lookup") for name in OPTIONS]


@pytest.mark.whole
@pytest.mark.parametrize(("drafted", "name"), DRAFTED, indirect=["drafted"])
def test_an_answer_is_what_it_is_without(drafted: Engine, name: str, seed: int) -> None:
    asked = {"max_tokens": 25, "logprobs": True, "top_logprobs": 3, **OPTIONS[name]}
    prompt = prompt_of(seed)
    expected, _ = events(drafted, prompt, draft_tokens=0, **asked)
    for count in (5, None):
        deltas, end = events(drafted, prompt, draft_tokens=count, **asked)
        assert [d.token for d in deltas] == [d.token for d in expected]
        assert "".join(d.text for d in deltas) == end.answer
        for ours, theirs in zip(deltas, expected, strict=True):
            assert ours.text == theirs.text
            if ours.logprob is not None:
                assert ours.logprob == pytest.approx(theirs.logprob, abs=2e-4)
                assert [t for t, _ in ours.top_logprobs] == [t for t, _ in theirs.top_logprobs]
        assert 0 <= end.drafted_tokens < end.completion_tokens


def test_a_draft_that_is_right_spares_steps(
    folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    verify = Lane.verify

    def watched(lane: Lane, tokens: mx.array) -> Any:
        runs.append(len(tokens))
        return verify(lane, tokens)

    monkeypatch.setattr(Lane, "verify", watched)
    with load(folder, draft=folder) as engine:
        asked = {"max_tokens": 61, **NEVER_ENDS}
        _, end = events(engine, prompt_of(seed), draft_tokens=4, **asked)
        assert end.completion_tokens == 61
        assert end.drafted_tokens == 48
        assert runs == [4] * 12
        runs.clear()
        _, plain = events(engine, prompt_of(seed), draft_tokens=0, **asked)
        assert not runs
        assert plain.tokens == end.tokens
        assert plain.drafted_tokens == 0


ENDINGS = ["stop", "max_tokens", "cancel"]
CUT = [("itself", ending) for ending in ENDINGS] + [("lookup", "stop")]
if SWEEP:
    CUT = [(draft, ending) for draft in ("itself", "other", "lookup") for ending in ENDINGS]


@pytest.mark.whole
@pytest.mark.parametrize(("drafted", "ending"), CUT, indirect=["drafted"])
def test_a_conversation_goes_on_from_where_an_answer_was_cut(
    drafted: Engine, ending: str, seed: int
) -> None:
    """In the midst of what was drafted: the cache holds what was said, and no more."""
    prompt = prompt_of(seed)
    options = GenerationOptions(max_tokens=30, draft_tokens=8, **NEVER_ENDS)
    whole = drafted.generate(prompt, options=options).result().answer
    owner = object()
    if ending == "stop":
        options = GenerationOptions(max_tokens=30, draft_tokens=8, stop=whole[9:13], **NEVER_ENDS)
    elif ending == "max_tokens":
        options = GenerationOptions(max_tokens=10, draft_tokens=8, **NEVER_ENDS)
    generation = drafted.submit(Request(prompt, options=options, owner=owner))
    if ending == "cancel":
        for event in generation:
            if isinstance(event, TextDelta) and event.token is not None:
                generation.cancel()
    end = generation.result()
    history = [*generation.prompt.tokens, *end.tokens]
    more = Request(
        [*history, *drafted.tokenize("and so")],
        options=GenerationOptions(max_tokens=12, draft_tokens=3, **NEVER_ENDS),
        owner=owner,
    )
    again = drafted.submit(more).result()
    assert again.cached_tokens >= len(history) - 1
    with load(drafted._worker.kit.folder, cache_bytes=0) as cold:  # type: ignore[union-attr]
        assert cold.submit(more).result().tokens == again.tokens


def test_caches_that_cannot_go_back_are_lost_alone(
    drafted: Engine, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer has all its tokens, and the engine others to make."""

    def failing(*_: Any) -> None:
        raise RuntimeError("broken")

    options = {"max_tokens": 40, "draft_tokens": 4, **NEVER_ENDS}
    _, whole = events(drafted, "abcabcabcabc", **options)
    for place in range(3, 9):  # one of them at least is in the midst of a draft
        with monkeypatch.context() as patch:
            patch.setattr(Lane, "take_back", failing)
            _, end = events(drafted, "abcabcabcabc", stop=whole.answer[place:], **options)
        assert end.finish_reason == "stop_string"
    assert events(drafted, "abcabcabcabc", **options)[1].tokens == whole.tokens


@pytest.mark.whole
@pytest.mark.parametrize(
    "drafted", ["itself", "other", "lookup"] if SWEEP else ["itself"], indirect=True
)
def test_in_company_drafts_rest(drafted: Engine, seed: int) -> None:
    """And come back when the others have left; no answer is another's matter."""
    options = GenerationOptions(max_tokens=40, draft_tokens=4, temperature=0.3, **NEVER_ENDS)
    prompts = [prompt_of(seed + i) for i in range(3)]
    asked = [
        Request(prompt, options=GenerationOptions(**{**vars(options), "seed": i, "stop": ()}))
        for i, prompt in enumerate(prompts)
    ]
    alone = [drafted.submit(one).result().tokens for one in asked]
    first = drafted.submit(asked[0])
    next(event for event in first if isinstance(event, TextDelta))
    others = [drafted.submit(one) for one in asked[1:]]
    assert [one.result().tokens for one in (first, *others)] == alone


def test_drafts_are_kept_in_memory_and_on_the_disk(
    folder: Path, other: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follow-up has the draft read what is new alone, in another engine too."""
    starts: list[int] = []
    close = DraftModel.close

    def watched(model: DraftModel, history: Any) -> None:
        assert model._start is not None
        starts.append(model._start.length)
        close(model, history)

    monkeypatch.setattr(DraftModel, "close", watched)
    options = GenerationOptions(max_tokens=8, draft_tokens=3, **NEVER_ENDS)
    with load(folder, draft=other, cache_dir=tmp_path) as engine:
        chat = engine.chat(options=options)
        chat.send(prompt_of(seed)).result()
        chat.send("and?").result()
        saved = tmp_path / "talk"
        chat.save(saved).result()
        messages = chat.messages
        text_length = len(engine.tokenize(prompt_of(seed)))
    assert starts[0] == 0
    assert starts[1] > text_length
    with load(folder, draft=other, cache_dir=tmp_path) as engine:
        chat = engine.chat(options=options, restore=saved)
        assert chat.messages == messages
        assert chat.send("so?").result().disk_tokens > 0
    assert starts[2] > starts[1]


@pytest.mark.parametrize("method", ["ready", "draft"])
def test_a_draft_that_fails_is_done_without(
    drafted: Engine,
    method: str,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[str] = []

    def failing(*_: Any) -> Any:
        calls.append(method)
        raise RuntimeError("broken")

    for drafter in (PromptLookup, DraftModel):
        monkeypatch.setattr(drafter, method, failing)
    options = {"max_tokens": 30, **NEVER_ENDS}
    _, expected = events(drafted, "abcabcabcabc", draft_tokens=0, **options)
    _, end = events(drafted, "abcabcabcabc", draft_tokens=4, **options)
    assert end.tokens == expected.tokens
    assert end.drafted_tokens == 0
    assert len(calls) == 1
    assert "drafting failed" in caplog.text


def test_what_is_read_once_is_no_draft_s_time(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a long prompt, read when the answer has begun, would have drafts rest for all of it."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    class Reader:
        def ready(self, history: Any) -> bool:
            clock[0] += 100.0 if len(history) < 8 else 0.0
            return True

        def draft(self, history: Any, last: mx.array, count: int) -> mx.array:
            clock[0] += 0.1
            return mx.zeros(count, mx.int32)

    class AsDrafted:
        next = mx.array([0])

        def step(self) -> list[tuple[int, int]]:
            clock[0] += 1.0
            return [(0, 0)]

        def verify(self, drafted: mx.array) -> list[tuple[int, int]]:
            return self.step() * (len(drafted) + 1)

    times = StepTimes()
    for _ in range(ENOUGH):
        times.stepped(1.0)
    drafting = Drafting(Reader(), [1, 2, 3], times, None)  # type: ignore[arg-type]
    lane: Any = AsDrafted()
    told = [len(drafting.step(lane, 1000)) for _ in range(8)]
    assert told[:2] == [1, 1]
    assert min(told[2:]) > 1


def test_a_draft_of_other_words_is_refused_by_name(folder: Path, tmp_path: Path, seed: int) -> None:
    few = tiny.save_of_few_words(tiny.of_few_words(seed), tmp_path / "few-words")
    with pytest.raises(OptionError, match="few-words has another tokenizer than model"):
        load(folder, draft=few)
    with pytest.raises(CheckpointNotFound):
        load(folder, draft=tmp_path / "nowhere")
    with pytest.raises(CheckpointNotFound, match="the draft model must be a path"):
        load(folder, draft=5)  # type: ignore[arg-type]


def test_a_picture_s_tokens_are_no_words() -> None:
    class Picture:
        digest = "a"

    spans = (ImageSpan(2, 3, Picture()), ImageSpan(6, 1, Picture()))  # type: ignore[arg-type]
    assert list(words(Prompt(tokens=[1, 2, 9, 9, 9, 3, 9, 4], spans=spans))) == [1, 2, 3, 4]
    assert list(words(Prompt(tokens=[1, 2]))) == [1, 2]


# --- planted faults: what the tests above are there for -------------------------------------------


@pytest.mark.parametrize("name", ["mistral", "qwen3_5"])
@pytest.mark.parametrize("fault", ["trimmed twice", "not run again", "none"])
def test_planted_faults_are_seen(
    name: str, fault: str, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was refused has to leave the caches, no more and no less; what states forgot with it
    has to be run again."""
    model = tiny.of_few_words(seed) if name == "mistral" else hybrids.HYBRIDS[name](seed)
    folder = tiny.save_of_few_words(model, tmp_path / name)
    go_back = Lane._go_back

    def faulty(lane: Lane, count: int, told: Any) -> list[int]:
        behind = go_back(lane, count, told)
        if count and fault == "trimmed twice":
            for cache in lane.caches:
                if cache.is_trimmable():
                    cache.extract(0).trim(1)
        return [] if fault == "not run again" else behind

    other = tiny.save_of_few_words(tiny.of_few_words(seed + 1), tmp_path / "other")
    prompt = [BOS, *random.Random(seed).choices(WORDS, k=20)]
    options = {"max_tokens": 16, "top_logprobs": 5, **NEVER_ENDS}
    with load(folder, draft=other, parallel=2) as engine:
        plain = engine.generate(prompt, options=GenerationOptions(draft_tokens=0, **options))
        expected = [e.logprob for e in plain if isinstance(e, TextDelta)]
        monkeypatch.setattr(Lane, "_go_back", faulty)
        drafted = engine.generate(prompt, options=GenerationOptions(draft_tokens=4, **options))
        told = [e.logprob for e in drafted if isinstance(e, TextDelta)]
        same = told == pytest.approx(expected, abs=2e-4)
    harmless = fault == "none" or (fault == "not run again" and name == "mistral")
    assert same is harmless
