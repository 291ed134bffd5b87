"""How an answer ends: once, with its reason, and with all of its text."""

import gc
import itertools
import random
import shutil
import subprocess
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.at_once import all_at_once, cancel_at, held
from support.processes import python
from support.short_chats import of_digits

from engine import (
    Engine,
    EngineClosed,
    Event,
    Finished,
    GenerationOptions,
    Progress,
    Request,
    RequestError,
    load,
)

LONG = "Count slowly: " + " ".join(str(n) for n in range(80))


def run(engine: Engine, prompt: Any, **options: Any) -> tuple[str, Finished]:
    """The text of all events but the last, and the last; checks the order of events."""
    events = list(engine.generate(prompt, options=GenerationOptions(**options)))
    finals = [e for e in events if isinstance(e, Finished)]
    assert len(finals) == 1
    assert events[-1] is finals[0]
    text = "".join(e.text for e in events)
    assert text == finals[0].answer
    return text, finals[0]


def teach(folder: Path, tokens: list[int]) -> None:
    """Make of the checkpoint one that says `tokens`, all different, each after the one before."""
    assert len(set(tokens)) == len(tokens)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if "norm" in name:
                tensor.fill_(1)
            elif "o_proj" in name or "down_proj" in name or "lm_head" in name:
                tensor.zero_()
        embeddings = tensors["model.embed_tokens.weight"]
        for token, following in itertools.pairwise(tokens):
            tensors["lm_head.weight"][following] = embeddings[token] / embeddings[token].norm()

    tiny.edit_weights(folder, change)


def test_length(tiny_engine: Engine) -> None:
    text, end = run(tiny_engine, "Once upon a time", max_tokens=7)
    assert end.finish_reason == "length"
    assert len(end.tokens) == 7
    assert text


def test_end_of_text(engine: Engine) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    _, end = run(engine, messages, max_tokens=60)
    assert end.finish_reason == "stop"


def test_stop_string_across_tokens(tiny_engine: Engine) -> None:
    text, _ = run(tiny_engine, "The alphabet: a b c d e", max_tokens=30)
    stop = text[5:12]
    cut, end = run(
        tiny_engine, "The alphabet: a b c d e", max_tokens=30, stop=[stop, "never there"]
    )
    assert end.finish_reason == "stop_string"
    assert end.stop_string == stop
    assert cut == text[: text.index(stop)]


def test_partial_stop_is_released_at_the_end(tiny_engine: Engine) -> None:
    text, _ = run(tiny_engine, "Once upon a time", max_tokens=12)
    held, end = run(tiny_engine, "Once upon a time", max_tokens=12, stop=text[-3:] + "#never#")
    assert end.finish_reason == "length"
    assert held == text


def test_statistics(tiny_engine: Engine) -> None:
    prompt = f"Once upon a time, {random.random()} miles away,"
    _, end = run(tiny_engine, prompt, max_tokens=5, logit_bias={0: -100.0, 2: -100.0})
    assert end.prompt_tokens == len(tiny_engine.tokenize(prompt))
    assert end.images_encoded == 0
    assert end.time_to_first_token is not None
    assert end.time_to_first_token >= end.prefill_seconds > 0
    assert end.tokens_per_second > 0
    assert end.completion_tokens == 5


def test_progress_tells_the_prefill(tiny_engine: Engine) -> None:
    prompt = f"{random.random()} {LONG}"
    options = GenerationOptions(max_tokens=1, prefill_step_size=100)
    events = [e for e in tiny_engine.generate(prompt, options=options) if isinstance(e, Progress)]
    total = events[0].total
    assert [e.processed for e in events][:3] == [0, 100, 200]
    assert events[-1].processed == total
    assert events[0].cached + total == len(tiny_engine.tokenize(prompt))


def test_cancel_by_an_event(tiny_engine: Engine) -> None:
    """Whoever stops an answer need not have it yet."""
    cancel = threading.Event()
    options = of_digits(tiny_engine, GenerationOptions(max_tokens=400))
    chat = tiny_engine.chat(options=options)
    with held(tiny_engine, lambda: chat.send("Count to a hundred.", cancel=cancel)) as generation:
        cancel.set()
    end = generation.result()
    assert (end.finish_reason, end.completion_tokens) == ("cancelled", 1)
    before = chat.messages
    end = chat.send("And now?", cancel=cancel).result()
    assert (end.finish_reason, end.tokens) == ("cancelled", ())
    assert chat.messages == before
    cancel.clear()
    assert chat.send("Hello", [], GenerationOptions(max_tokens=2), cancel).result().tokens


def test_cancel_during_prefill_keeps_what_was_read(tiny_engine: Engine) -> None:
    prompt = f"{random.random()} {LONG[:300]}"
    with all_at_once(tiny_engine):
        generation = tiny_engine.generate(prompt, options=GenerationOptions(prefill_step_size=32))
        cancel_at(generation, lambda event: isinstance(event, Progress) and event.processed >= 32)
    end = generation.result()
    assert end.finish_reason == "cancelled"
    assert not end.tokens
    again = tiny_engine.generate(prompt, options=GenerationOptions(max_tokens=4)).result()
    assert again.cached_tokens >= 32
    tiny_engine._worker.memory.budget.shrink(0)  # type: ignore[union-attr]
    cold = tiny_engine.generate(prompt, options=GenerationOptions(max_tokens=4)).result()
    assert cold.cached_tokens == 0
    assert again.tokens == cold.tokens


def test_cancel_during_decode_loses_no_text(tiny_engine: Engine) -> None:
    options = GenerationOptions(max_tokens=200)
    told: list[str] = []

    def enough(event: Event) -> bool:
        told.append(event.text)
        return len("".join(told)) > 20

    with all_at_once(tiny_engine):
        generation = cancel_at(tiny_engine.generate("Once upon a time", options=options), enough)
    text = "".join(event.text for event in generation)
    end = generation.result()
    assert end.finish_reason == "cancelled"
    assert text == end.answer
    tokens = list(end.tokens)
    whole = tiny_engine.generate(
        "Once upon a time", options=GenerationOptions(max_tokens=len(tokens))
    )
    assert whole.result().answer == end.answer
    follow_up = tiny_engine.tokenize("Once upon a time") + tokens + tiny_engine.tokenize(" Then")
    warm = tiny_engine.generate(follow_up, options=GenerationOptions(max_tokens=1)).result()
    assert warm.cached_tokens == len(follow_up) - len(tiny_engine.tokenize(" Then"))


def test_cancel_at_random_moments(tiny_engine: Engine, seed: int) -> None:
    """Whenever it comes, an answer ends once, its text whole, and the next one is right."""
    rng = random.Random(seed)
    words = rng.choices(LONG.split(), k=200)
    reasons = []
    for _ in range(40):
        # Starts of one text: each continues what was left by those cancelled before it.
        long = " ".join(words[: rng.randrange(1, 40)] + rng.choices(words, k=rng.randrange(4)))
        options = GenerationOptions(max_tokens=rng.randrange(1, 8), prefill_step_size=16)
        left = itertools.count(-rng.randrange(10))
        with all_at_once(tiny_engine):
            generation = tiny_engine.generate(long, options=options)
            cancel_at(generation, lambda _, left=left: not next(left))
        events = list(generation)
        assert sum(isinstance(e, Finished) for e in events) == 1
        end = events[-1]
        assert isinstance(end, Finished)
        assert "".join(e.text for e in events) == end.answer
        reasons.append(end.finish_reason)
    assert "cancelled" in reasons
    for length in (10, 20, 30, 39):
        prompt = " ".join(words[:length])
        warm = tiny_engine.generate(prompt, options=GenerationOptions(max_tokens=6)).result()
        assert warm.cached_tokens > 0
        tiny_engine._worker.memory.budget.shrink(0)  # type: ignore[union-attr]
        cold = tiny_engine.generate(prompt, options=GenerationOptions(max_tokens=6)).result()
        assert warm.tokens == cold.tokens


def test_cancel_before_its_turn(tiny_engine: Engine) -> None:
    options = GenerationOptions(max_tokens=400)
    with held(tiny_engine, lambda: tiny_engine.generate(LONG, options=options)) as first:
        waiting = tiny_engine.generate("Hello", options=GenerationOptions(max_tokens=100))
        waiting.cancel()
        assert waiting.result(timeout=600).finish_reason == "cancelled"
        assert not first.done
        first.cancel()
    assert first.result().finish_reason == "cancelled"
    first.cancel()  # after the end: nothing


def test_two_threads_at_once(tiny_engine: Engine) -> None:
    alone = {
        prompt: tiny_engine.generate(prompt, options=GenerationOptions(max_tokens=10))
        .result()
        .tokens
        for prompt in ("One day", "In the north")
    }
    found: list[tuple[str, Any]] = []

    def ask(prompt: str) -> None:
        for _ in range(5):
            end = tiny_engine.generate(prompt, options=GenerationOptions(max_tokens=10)).result()
            found.append((prompt, end.tokens))

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 10
    assert all(tokens == alone[prompt] for prompt, tokens in found)


def test_emoji_are_never_broken(engine: Engine) -> None:
    tokens = engine.tokenize("🦊é日")
    bias = GenerationOptions(max_tokens=len(tokens), logit_bias=dict.fromkeys(tokens, 60.0))
    deltas = list(engine.generate("Emoji: 🦊é日", options=bias))
    assert all("\ufffd" not in d.text for d in deltas)


def test_a_cut_answer_shows_no_half_of_a_character(tiny_folder: Path, tmp_path: Path) -> None:
    """Cut at every length, an answer of multi-byte characters has all of its whole ones."""
    folder = shutil.copytree(tiny_folder, tmp_path / "parrot")
    with load(tiny_folder, vocab_only=True) as words:
        (start,) = words.tokenize(":")
        of_byte = {words.token_bytes(token): token for token in range(300)}
        # A character in tokens of one byte each, which no tokenizer would choose, is one too.
        tokens = words.tokenize("🦊\u200dé日本") + [of_byte[bytes([b])] for b in "👩".encode()]
    teach(folder, [start, *tokens])
    with load(folder) as engine:
        for length in range(1, len(tokens) + 1):
            options = GenerationOptions(max_tokens=length)
            events = list(engine.generate([start], options=options))
            end = events[-1]
            assert isinstance(end, Finished)
            assert list(end.tokens) == tokens[:length]
            assert all("\ufffd" not in event.text for event in events)
            spoken = b"".join(engine.token_bytes(t) or b"" for t in tokens[:length])
            assert end.answer == spoken.decode(errors="ignore")
        assert end.answer == "🦊\u200dé日本👩"


def test_max_context_ends_an_answer(tiny_engine: Engine) -> None:
    prompt = "Once upon a time"
    length = len(tiny_engine.tokenize(prompt))
    _, end = run(tiny_engine, prompt, max_tokens=50, max_context=length + 6)
    assert (end.finish_reason, len(end.tokens)) == ("length", 6)


def test_a_failure_is_the_final_event(letters_folder: Path) -> None:
    """What goes wrong on the engine's thread reaches the caller, and the engine goes on."""
    with load(letters_folder) as engine:
        generation = engine.generate("Hello", options=GenerationOptions(max_tokens=2))
        generation.result()

        def broken(*_: Any) -> None:
            raise MemoryError("no room")

        kit = engine._worker.kit
        assert kit is not None
        make_cache, kit.make_cache = kit.make_cache, broken  # type: ignore[method-assign]
        engine._worker.memory.budget.shrink(0)  # type: ignore[union-attr]
        events = list(engine.generate("Hello"))
        assert isinstance(events[-1], Finished)
        assert events[-1].finish_reason == "error"
        assert isinstance(events[-1].error, MemoryError)
        failed = engine.generate("Hello")
        with pytest.raises(MemoryError, match="no room"):
            failed.result()
        kit.make_cache = make_cache  # type: ignore[method-assign]
        assert engine.generate("Hello", options=GenerationOptions(max_tokens=2)).result().tokens


def test_close(letters_folder: Path) -> None:
    engine = load(letters_folder)
    with held(engine, lambda: engine.generate(LONG)) as running:
        waiting = engine.submit(Request("Hello"))
        engine.close()
    engine.close()
    assert running.result().finish_reason == "cancelled"
    assert waiting.result().finish_reason == "cancelled"
    with pytest.raises(EngineClosed):
        engine.generate("Hello")
    assert not any(t.name == "sightline-engine" and not t.daemon for t in threading.enumerate())


def test_a_process_ends_cleanly_whenever_it_ends(letters_folder: Path, demo: Path) -> None:
    """MLX's thread-local state must be gone before the interpreter is."""
    script = f"""
from engine import GenerationOptions, load
engine = load({str(letters_folder)!r})
engine.generate("Hello", options=GenerationOptions(max_tokens=2)).result()
import sys
assert "mlx_vlm" not in sys.modules
{{}}
"""
    endings = {"1 / 0": script.format("1 / 0")}
    endings["while generating"] = script.format("engine.generate('Hello ' * 300)")
    endings["while loading"] = f"""
import threading
from engine import load
reached = threading.Event()
def progress(stage, *_):
    if stage == "load decoder":
        reached.set()
given = {{"progress": progress}}
threading.Thread(target=load, args=({str(demo)!r},), kwargs=given, daemon=True).start()
assert reached.wait(600)
"""
    failed = """
from engine import CheckpointError, load
for _ in range(3):
    try:
        load("/nowhere")
    except CheckpointError:
        pass
"""
    endings["after failed loads and an answer"] = failed + script.format("pass")
    for ending, code in endings.items():
        run = subprocess.run(python(code), capture_output=True, text=True)
        assert run.returncode == (ending == "1 / 0"), (ending, run.stderr)
        assert "terminate" not in run.stderr


def test_a_callback_that_fails_ends_nothing_else(letters_folder: Path) -> None:
    def fail(_: Finished) -> None:
        raise RuntimeError("the callback's own fault")

    engine = load(letters_folder)
    with held(engine, lambda: engine.generate(LONG)) as running:
        broken = engine.submit(Request("Hello"), on_finish=fail)
        waiting = engine.submit(Request("Hello"))
        engine.close()
    for generation in (running, broken, waiting):
        assert generation.result(timeout=600).finish_reason == "cancelled"


def test_nothing_keeps_a_closed_model_in_memory(letters_folder: Path) -> None:
    engine = load(letters_folder)
    kit = engine._worker.kit
    model = weakref.ref(kit.text_model)
    good = engine.generate("Hello", options=GenerationOptions(max_tokens=2))
    good.result()
    kit.make_cache = lambda: [object()]  # type: ignore
    engine._worker.memory.budget.shrink(0)  # type: ignore[union-attr]
    failed = engine.generate("Hello")
    assert list(failed)[-1].error is not None  # type: ignore[union-attr]
    engine.close()
    del kit
    gc.collect()
    assert model() is None


def test_an_engine_nobody_holds_ends_its_thread(letters_folder: Path) -> None:
    end = load(letters_folder).generate("Hello", options=GenerationOptions(max_tokens=3)).result()
    assert len(end.tokens) == 3  # the generation kept it alive
    engine = load(letters_folder, vocab_only=True)
    thread, gone = engine._worker.thread, weakref.ref(engine)
    assert engine.tokenize("Hello")
    with pytest.raises(RequestError, match="vocab_only"):
        engine.generate("Hello")
    del engine
    gc.collect()
    assert gone() is None
    thread.join(timeout=600)
    assert not thread.is_alive()


def test_results_time_out(tiny_engine: Engine) -> None:
    with held(tiny_engine, lambda: tiny_engine.generate(LONG)) as generation:
        with pytest.raises(TimeoutError):
            generation.result(timeout=0.01)
        generation.cancel()
    generation.result(timeout=600)
