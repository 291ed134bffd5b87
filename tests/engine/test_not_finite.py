"""Logits and rows that are NaN or infinite: the answer ends with an error, and nothing is kept."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import mlx.core as mx
from PIL import Image
from support import tiny
from support.pixtral_reference import PixtralReference
from support.serving import running

from engine import (
    Engine,
    Event,
    GenerationOptions,
    NumericalError,
    Progress,
    Request,
    TextDelta,
    load,
)
from engine.drafting.lookup import PromptLookup
from engine.schema import Schema
from vision_add_ons.testing import BOS, WORDS, written

Z = tiny.LETTERS.index("Z")


def _spoil_z(tensors: dict[str, Any]) -> None:
    """The letter Z can be written, but whoever reads it has NaN from there on."""
    tensors["model.embed_tokens.weight"][Z] = float("nan")


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tiny.save_of_letters(7, tmp_path_factory.mktemp("spoiled") / "model")
    tiny.edit_weights(folder, _spoil_z)
    with load(folder) as engine:
        yield engine


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.0, "repetition_penalty": 1.1}, {"schema": Schema.regex("[ -Y]+")}],
)
def test_a_drafted_token_that_is_refused_spoils_nothing(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those before it do not see it, but NaN times nothing is NaN."""

    def draft(lookup: Any, history: Any, last: mx.array, count: int) -> mx.array:
        return mx.full(count, Z, last.dtype)

    monkeypatch.setattr(PromptLookup, "ready", lambda lookup, history: True)
    monkeypatch.setattr(PromptLookup, "draft", draft)
    folder = tiny.save_of_letters(7, tmp_path / "model")
    tiny.edit_weights(folder, _spoil_z)
    with load(folder, draft="lookup", parallel=2) as engine:
        wanted = {"max_tokens": 12, "seed": 4, "logit_bias": {2: -100, Z: -100}, **options}
        plain, drafted = (
            engine.generate(
                "a good prompt", options=GenerationOptions(draft_tokens=n, **wanted)
            ).result()
            for n in (0, 3)
        )
    assert drafted.tokens == plain.tokens


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 4}, {"top_logprobs": 3}])
def test_a_prompt_that_ends_in_nan(spoiled: Engine, options: dict[str, Any]) -> None:
    wanted = GenerationOptions(max_tokens=6, **options)
    good = spoiled.generate("a good prompt", options=wanted).result()
    kept = spoiled.cache_stats()
    generation = spoiled.generate("a good prompt with a Z", options=wanted)
    events = [event for event in generation if isinstance(event, TextDelta)]
    assert events == []
    with pytest.raises(NumericalError, match="NaN or infinity"):
        generation.result()
    assert spoiled.cache_stats()["conversations"] <= kept["conversations"]
    for prompt in ("a good prompt with a Z", "a good prompt with a Z and more"):
        with pytest.raises(NumericalError):
            spoiled.generate(prompt, options=wanted).result()
    again = spoiled.generate("a good prompt", options=wanted).result()
    assert (again.tokens, again.finish_reason) == (good.tokens, good.finish_reason)


def test_an_answer_that_comes_to_it(spoiled: Engine) -> None:
    """What was said before stays said; nothing that was computed stays."""
    wanted = GenerationOptions(max_tokens=6, logit_bias={Z: 100.0}, logprobs=True)
    generation = spoiled.generate("say it", options=wanted)
    texts = [event.text for event in generation if isinstance(event, TextDelta)]
    assert "".join(texts) == "Z"
    with pytest.raises(NumericalError):
        generation.result()
    after = spoiled.generate("say it", options=GenerationOptions(max_tokens=6)).result()
    assert after.cached_tokens == 0 or after.finish_reason != "error"


def test_a_prompt_that_is_cancelled_before_it_is_looked_at(spoiled: Engine) -> None:
    """Nothing of it is kept: what begins like it and ends well has nothing to fear."""
    wanted = GenerationOptions(max_tokens=6, prefill_step_size=8)
    kept = spoiled.cache_stats()["conversations"]
    stop = threading.Event()

    def stop_half_way(event: Event) -> None:
        if isinstance(event, Progress) and event.processed >= 16:
            stop.set()

    request = Request("Z" + "a prompt that is long" * 10, options=wanted)
    generation = spoiled.submit(request, on_event=stop_half_way, cancel=stop)
    assert generation.result().finish_reason == "cancelled"
    assert spoiled.cache_stats()["conversations"] == kept


def test_the_server_tells(spoiled: Engine) -> None:
    with running(spoiled, model="tiny") as server:
        body = {"model": "tiny", "prompt": "a Z", "max_tokens": 2, "logprobs": 1}
        reply = server.ask("POST", "/v1/completions", body)
        assert (reply.status, reply.error["code"]) == (500, "numerical_error")
        assert "NaN" in reply.error["message"]
        assert server.ask("POST", "/v1/completions", {**body, "prompt": "a"}).status == 200


def test_rows_of_nan_are_not_kept(tmp_path: Path) -> None:
    reference = PixtralReference(5)
    folder = written(reference, tmp_path / "model")

    def spoil(tensors: dict[str, Any]) -> None:
        name = next(n for n in sorted(tensors) if "projector" in n and n.endswith("bias"))
        tensors[name][0] = float("nan")

    tiny.edit_weights(folder, spoil)
    image = Image.new("RGB", reference.sizes[0])
    with load(folder) as engine:
        wanted = GenerationOptions(max_tokens=2)
        seeing = [BOS, reference.image_token, *WORDS[:3]]
        for _ in range(2):
            with pytest.raises(NumericalError, match="rows of NaN"):
                engine.generate(seeing, [image], wanted).result()
        kept = engine.cache_stats()
        assert (kept["images"], kept["conversations"]) == (0, 0)
        assert engine.generate([BOS, *WORDS[:3]], options=wanted).result().error is None
