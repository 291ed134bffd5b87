"""How an answer ends: once, with its reason, and with all of its text."""

import gc
import random
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

from engine import (
    Engine,
    EngineClosed,
    Finished,
    GenerationOptions,
    Progress,
    Request,
    RequestError,
    TextDelta,
    load,
)

LONG = "Count slowly: " + " ".join(str(n) for n in range(160))


def run(engine: Engine, prompt: Any, **options: Any) -> tuple[str, Finished]:
    """The text of all events but the last, and the last; checks the order of events."""
    events = list(engine.generate(prompt, options=GenerationOptions(**options)))
    finals = [e for e in events if isinstance(e, Finished)]
    assert len(finals) == 1
    assert events[-1] is finals[0]
    text = "".join(e.text for e in events)
    assert text == finals[0].answer
    return text, finals[0]


def test_length(engine: Engine) -> None:
    text, end = run(engine, "Once upon a time", max_tokens=7)
    assert end.finish_reason == "length"
    assert len(end.tokens) == 7
    assert text


def test_end_of_text(engine: Engine) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    _, end = run(engine, messages, max_tokens=60)
    assert end.finish_reason == "stop"


def test_stop_string_across_tokens(engine: Engine) -> None:
    text, _ = run(engine, "The alphabet: a b c d e", max_tokens=30)
    stop = text[5:12]
    cut, end = run(engine, "The alphabet: a b c d e", max_tokens=30, stop=[stop, "never there"])
    assert end.finish_reason == "stop_string"
    assert end.stop_string == stop
    assert cut == text[: text.index(stop)]


def test_partial_stop_is_released_at_the_end(engine: Engine) -> None:
    text, _ = run(engine, "Once upon a time", max_tokens=12)
    held, end = run(engine, "Once upon a time", max_tokens=12, stop=text[-3:] + "#never#")
    assert end.finish_reason == "length"
    assert held == text


def test_statistics(engine: Engine) -> None:
    prompt = f"Once upon a time, {random.random()} miles away,"
    _, end = run(engine, prompt, max_tokens=5, logit_bias={0: -100.0, 2: -100.0})
    assert end.prompt_tokens == len(engine.tokenize(prompt))
    assert end.images_encoded == 0
    assert end.time_to_first_token is not None
    assert end.time_to_first_token >= end.prefill_seconds > 0
    assert end.tokens_per_second > 0
    assert end.completion_tokens == 5


def test_progress_tells_the_prefill(engine: Engine) -> None:
    prompt = f"{random.random()} {LONG}"
    options = GenerationOptions(max_tokens=1, prefill_step_size=100)
    events = [e for e in engine.generate(prompt, options=options) if isinstance(e, Progress)]
    total = events[0].total
    assert [e.processed for e in events][:3] == [0, 100, 200]
    assert events[-1].processed == total
    assert events[0].cached + total == len(engine.tokenize(prompt))


def test_cancel_by_an_event(engine: Engine) -> None:
    """Whoever stops an answer need not have it yet."""
    cancel = threading.Event()
    chat = engine.chat(options=GenerationOptions(max_tokens=400))
    for event in chat.send("Count to a hundred.", cancel=cancel):
        if isinstance(event, TextDelta):
            cancel.set()
    assert chat.last is not None
    assert chat.last.finish_reason == "cancelled"
    assert 1 <= chat.last.completion_tokens < 20
    before = chat.messages
    end = chat.send("And now?", cancel=cancel).result()
    assert (end.finish_reason, end.tokens) == ("cancelled", ())
    assert chat.messages == before
    cancel.clear()
    assert chat.send("Hello", [], GenerationOptions(max_tokens=2), cancel).result().tokens


def test_cancel_during_prefill_keeps_what_was_read(engine: Engine) -> None:
    prompt = f"{random.random()} {LONG}"
    generation = engine.generate(prompt, options=GenerationOptions(prefill_step_size=100))
    for event in generation:
        if isinstance(event, Progress) and event.processed >= 200:
            generation.cancel()
    end = generation.result()
    assert end.finish_reason == "cancelled"
    assert not end.tokens
    again = engine.generate(prompt, options=GenerationOptions(max_tokens=6)).result()
    assert again.cached_tokens >= 200
    engine._worker.memory.budget.shrink(0)  # type: ignore[union-attr]
    cold = engine.generate(prompt, options=GenerationOptions(max_tokens=6)).result()
    assert cold.cached_tokens == 0
    assert again.tokens == cold.tokens


def test_cancel_during_decode_loses_no_text(engine: Engine) -> None:
    generation = engine.generate("Once upon a time", options=GenerationOptions(max_tokens=200))
    text = ""
    for event in generation:
        text += event.text
        if isinstance(event, TextDelta) and len(text) > 20:
            generation.cancel()
    end = generation.result()
    assert end.finish_reason == "cancelled"
    assert text == end.answer
    tokens = list(end.tokens)
    whole = engine.generate("Once upon a time", options=GenerationOptions(max_tokens=len(tokens)))
    assert whole.result().answer == end.answer
    follow_up = engine.tokenize("Once upon a time") + tokens + engine.tokenize(" Then")
    warm = engine.generate(follow_up, options=GenerationOptions(max_tokens=1)).result()
    assert warm.cached_tokens == len(follow_up) - len(engine.tokenize(" Then"))


def test_cancel_at_random_moments(engine: Engine, seed: int) -> None:
    """Whenever it comes, an answer ends once, its text whole, and the next one is right."""
    rng = random.Random(seed)
    words = rng.choices(LONG.split(), k=200)
    reasons = []
    for _ in range(300):
        # Starts of one text: each continues what was left by those cancelled before it.
        long = " ".join(words[: rng.randrange(1, 40)] + rng.choices(words, k=rng.randrange(4)))
        options = GenerationOptions(max_tokens=rng.randrange(1, 8), prefill_step_size=16)
        generation = engine.generate(long, options=options)
        timer = threading.Timer(rng.random() * 0.15, generation.cancel)
        timer.start()
        events = list(generation)
        timer.cancel()
        assert sum(isinstance(e, Finished) for e in events) == 1
        end = events[-1]
        assert isinstance(end, Finished)
        assert "".join(e.text for e in events) == end.answer
        reasons.append(end.finish_reason)
    assert "cancelled" in reasons
    for length in (10, 20, 30, 39):
        prompt = " ".join(words[:length])
        warm = engine.generate(prompt, options=GenerationOptions(max_tokens=6)).result()
        assert warm.cached_tokens > 0
        engine._worker.memory.budget.shrink(0)  # type: ignore[union-attr]
        cold = engine.generate(prompt, options=GenerationOptions(max_tokens=6)).result()
        assert warm.tokens == cold.tokens


def test_cancel_before_its_turn(engine: Engine) -> None:
    first = engine.generate(LONG, options=GenerationOptions(max_tokens=100))
    waiting = engine.generate("Hello", options=GenerationOptions(max_tokens=100))
    waiting.cancel()
    assert waiting.result(timeout=5).finish_reason == "cancelled"
    assert not first.done
    first.cancel()
    assert first.result().finish_reason == "cancelled"
    first.cancel()  # after the end: nothing


def test_two_threads_at_once(engine: Engine) -> None:
    alone = {
        prompt: engine.generate(prompt, options=GenerationOptions(max_tokens=10)).result().tokens
        for prompt in ("One day", "In the north")
    }
    found: list[tuple[str, Any]] = []

    def ask(prompt: str) -> None:
        for _ in range(5):
            end = engine.generate(prompt, options=GenerationOptions(max_tokens=10)).result()
            found.append((prompt, end.tokens))

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 10
    assert all(tokens == alone[prompt] for prompt, tokens in found)


def test_emoji_are_never_broken(engine: Engine) -> None:
    """Cut at every length, an answer of multi-byte characters never shows half of one."""
    tokens = engine.tokenize("🦊👩‍🚀é日本")
    bias = GenerationOptions(max_tokens=len(tokens), logit_bias=dict.fromkeys(tokens, 60.0))
    deltas = list(engine.generate("Emoji: 🦊👩‍🚀é日本", options=bias))
    assert all("\ufffd" not in d.text for d in deltas)
    for length in range(1, len(tokens)):
        options = GenerationOptions(max_tokens=length, logit_bias=dict.fromkeys(tokens, 60.0))
        for event in engine.generate("Emoji: 🦊👩‍🚀é日本", options=options):
            assert "\ufffd" not in event.text


def test_max_context_ends_an_answer(engine: Engine) -> None:
    prompt = "Once upon a time"
    length = len(engine.tokenize(prompt))
    _, end = run(engine, prompt, max_tokens=50, max_context=length + 6)
    assert (end.finish_reason, len(end.tokens)) == ("length", 6)


def test_a_failure_is_the_final_event(demo: Path) -> None:
    """What goes wrong on the engine's thread reaches the caller, and the engine goes on."""
    with load(demo) as engine:
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


def test_close(demo: Path) -> None:
    engine = load(demo)
    running = engine.generate(LONG, options=GenerationOptions(max_tokens=500))
    waiting = engine.submit(Request("Hello"))
    for event in running:
        if isinstance(event, TextDelta):
            break
    engine.close()
    engine.close()
    assert running.result().finish_reason == "cancelled"
    assert waiting.result().finish_reason == "cancelled"
    with pytest.raises(EngineClosed):
        engine.generate("Hello")
    assert not any(t.name == "sightline-engine" and not t.daemon for t in threading.enumerate())


def test_a_process_ends_cleanly_whenever_it_ends(demo: Path) -> None:
    """MLX's thread-local state must be gone before the interpreter is."""
    script = f"""
from engine import GenerationOptions, load
engine = load({str(demo)!r})
engine.generate("Hello", options=GenerationOptions(max_tokens=2)).result()
import sys
assert "mlx_vlm" not in sys.modules
{{}}
"""
    endings = {e: script.format(e) for e in ("engine.close()", "pass", "1 / 0")}
    endings["while generating"] = script.format("engine.generate('Hello ' * 500)")
    endings["while loading"] = f"""
import threading, time
from engine import load
threading.Thread(target=load, args=({str(demo)!r},), daemon=True).start()
time.sleep(2.5)
"""
    endings["after a failed load"] = """
from engine import CheckpointError, load
for _ in range(3):
    try:
        load("/nowhere")
    except CheckpointError:
        pass
"""
    for ending, code in endings.items():
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert run.returncode == (ending == "1 / 0"), (ending, run.stderr)
        assert "terminate" not in run.stderr


def test_a_callback_that_fails_ends_nothing_else(demo: Path) -> None:
    def fail(_: Finished) -> None:
        raise RuntimeError("the callback's own fault")

    engine = load(demo)
    running = engine.generate(LONG, options=GenerationOptions(max_tokens=500))
    broken = engine.submit(Request("Hello"), on_finish=fail)
    waiting = engine.submit(Request("Hello"))
    engine.close()
    for generation in (running, broken, waiting):
        assert generation.result(timeout=60).finish_reason == "cancelled"


def test_nothing_keeps_a_closed_model_in_memory(demo: Path) -> None:
    engine = load(demo)
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


def test_an_engine_nobody_holds_ends_its_thread(demo: Path) -> None:
    end = load(demo).generate("Hello", options=GenerationOptions(max_tokens=3)).result()
    assert len(end.tokens) == 3  # the generation kept it alive
    engine = load(demo, vocab_only=True)
    thread, gone = engine._worker.thread, weakref.ref(engine)
    assert engine.tokenize("Hello")
    with pytest.raises(RequestError, match="vocab_only"):
        engine.generate("Hello")
    del engine
    gc.collect()
    assert gone() is None
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_results_time_out(engine: Engine) -> None:
    generation = engine.generate(LONG, options=GenerationOptions(max_tokens=500))
    with pytest.raises(TimeoutError):
        generation.result(timeout=0.01)
    generation.cancel()
    started = time.perf_counter()
    generation.result(timeout=60)
    assert time.perf_counter() - started < 60
