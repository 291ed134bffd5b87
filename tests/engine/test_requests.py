"""Requests that are wrong in themselves: refused at once, with a typed error."""

from pathlib import Path
from typing import Any

import pytest

from engine import (
    ContextExceeded,
    Engine,
    GenerationOptions,
    ImageError,
    OptionError,
    PromptError,
    RequestError,
)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"max_tokens": True},
        {"max_tokens": 2.5},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"top_k": -1},
        {"seed": -1},
        {"seed": 2**64},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"stop": [3]},
        {"repetition_penalty": 0},
        {"repetition_penalty": 5e-324},
        {"presence_penalty": float("nan")},
        {"penalty_context": 0},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {"5": 1.0}},
        {"logit_bias": {5: float("inf")}},
        {"top_logprobs": 101},
        {"max_context": 1},
        {"kv_bits": 3},
        {"kv_bits": 4.0},
        {"temperature": 10**400},
        {"seed": 10**5000},
        {"penalty_context": 2**31},
        {"stop": 5},
        {"logit_bias": [(1, 2.0)]},
        {"logit_bias": {5: 2.0**200}},
        {"logprobs": "no"},
        {"kv_group_size": 48},
        {"quantized_kv_start": -1},
        {"prefill_step_size": 0},
    ],
)
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        GenerationOptions(**wrong)
    assert isinstance(caught.value, OptionError)


def test_requests_that_this_model_cannot_answer(engine: Engine, tmp_path: Path) -> None:
    def ask(prompt: Any, images: Any = (), **options: Any) -> None:
        engine.generate(prompt, images, GenerationOptions(**options))

    with pytest.raises(ContextExceeded, match="context ends at 8192"):
        ask("word " * 9000)
    with pytest.raises(ContextExceeded, match="ends at 5"):
        ask("one two three four five six", max_context=5)
    with pytest.raises(OptionError, match="vocabulary ends"):
        ask("x", logit_bias={49152: 1.0})
    with pytest.raises(OptionError, match="kv_group_size must divide"):
        ask("x", kv_bits=8, kv_group_size=128)
    for token in (49152, -1, 2**31, -(2**80)):
        with pytest.raises(RequestError, match="from 0 to 49151"):
            ask([1, token])
    with pytest.raises(PromptError, match="half a character"):
        engine.tokenize("\udcff")
    for prompt in ("a\udcff", [{"role": "user", "content": "\ud800"}]):
        with pytest.raises(PromptError, match="half a character"):
            ask(prompt)
    with pytest.raises(OptionError, match="GenerationOptions"):
        engine.generate("x", options={"max_tokens": 3})  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="takes a Request"):
        engine.submit("x")  # type: ignore[arg-type]
    with pytest.raises(PromptError):
        engine.tokenize(b"x")  # type: ignore[arg-type]
    for images in (5, [5], [None], [[]], object()):
        with pytest.raises(ImageError):
            ask("x", images)
    for prompt in (
        b"bytes",
        "",
        [],
        None,
        5,
        [{"role": "user"}],
        [{"role": "bishop", "content": "x"}],
    ):
        with pytest.raises(PromptError):
            ask(prompt)
    with pytest.raises(ImageError, match="text only"):
        ask("x", images=[_picture()])
    with pytest.raises(ImageError, match="text only"):
        engine.chat().send("x", images=[_picture()])
    with pytest.raises(ImageError):
        ask("x", images=[tmp_path / "absent.png"])


def _picture() -> Any:
    from PIL import Image

    return Image.new("RGB", (4, 4))
