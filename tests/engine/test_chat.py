"""Conversations: what is kept, what is cached, and what a question leaves behind."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.at_once import all_at_once, cancel_at, held
from support.short_chats import of_digits

from engine import ChatBusy, Engine, GenerationOptions, PromptError, load

SHORT = GenerationOptions(max_tokens=12)


@pytest.fixture
def digits(tiny_engine: Engine) -> GenerationOptions:
    return of_digits(tiny_engine, SHORT)


def test_a_follow_up_runs_only_what_is_new(engine: Engine) -> None:
    options = GenerationOptions(max_tokens=2)
    chat = engine.chat(system="You answer briefly.", options=options)
    first = chat.send("Name a colour of the rainbow.").result()
    second = chat.send("Name another one.").result()
    assert chat.last is second
    ended = first.finish_reason == "stop"  # then the end-of-text token is cached too
    assert second.cached_tokens == first.prompt_tokens + len(first.tokens) + ended
    third = chat.send("And one more.").result()
    assert third.cached_tokens >= second.prompt_tokens + len(second.tokens)
    assert [m.role for m in chat.messages] == ["system"] + ["user", "assistant"] * 3


def test_a_follow_up_takes_the_cache_over_and_copies_nothing(letters_folder: Path) -> None:
    with load(letters_folder) as engine:
        digits = of_digits(engine, SHORT)
        kept = engine._worker.memory.budget._kept  # type: ignore[union-attr]

        def layers() -> list[int]:
            ((entry, _),) = kept.values()
            return [id(layer) for layer in entry.kv]  # type: ignore[attr-defined]

        chat = engine.chat(options=digits)
        chat.send("Name a colour.").result()
        before = layers()
        # Also after somebody else continued the conversation.
        messages = [{"role": m.role, "content": m.text} for m in chat.messages]
        engine.generate([*messages, {"role": "user", "content": "Why?"}], options=digits).result()
        chat.send("Name another.").result()
        assert layers() == before


def test_an_answer_in_unusual_tokens_is_still_cached(tiny_engine: Engine) -> None:
    """A model may spell a word in tokens that a tokenizer would not choose."""
    letters = [t for c in "helowrd" for t in tiny_engine.tokenize(c)]
    options = GenerationOptions(max_tokens=10, logit_bias=dict.fromkeys(letters, 80.0))
    chat = tiny_engine.chat(options=SHORT)
    first = chat.send("Spell something.", options=options).result()
    assert tiny_engine.tokenize(first.answer) != list(first.tokens)
    second = chat.send("Go on.").result()
    assert second.cached_tokens == first.prompt_tokens + len(first.tokens)


def test_what_the_model_reads_is_the_template_s_text(tiny_engine: Engine) -> None:
    letters = [t for c in "helowrd" for t in tiny_engine.tokenize(c)]
    odd = GenerationOptions(max_tokens=8, logit_bias=dict.fromkeys(letters, 80.0))
    chat = tiny_engine.chat()
    for question in ("hello", "l", "hell"):  # questions that occur in the answers
        chat.send(question, options=odd).result()
    messages = [{"role": m.role, "content": m.text} for m in chat.messages]
    messages.append({"role": "user", "content": "More?"})
    tokenizer = tiny_engine._worker.kit.tokenizer  # type: ignore[union-attr]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    kept = chat.send("More?", options=SHORT)
    assert tokenizer.decode(kept.prompt.tokens) == rendered
    kept.result()


def test_conversations_alternate_without_evicting_each_other(letters_folder: Path) -> None:
    with load(letters_folder) as engine:
        digits = of_digits(engine, SHORT)
        chats = [engine.chat(system=f"You are number {i}.", options=digits) for i in range(4)]
        for question in ("Who are you?", "Are you sure?", "Why?"):
            for chat in chats:
                before = chat.last
                end = chat.send(question).result()
                if before is not None:
                    assert end.cached_tokens >= before.prompt_tokens + len(before.tokens)
        assert engine.cache_stats()["conversations"] == 4


def test_the_budget_is_kept(letters_folder: Path) -> None:
    system = "You answer at length, and take all the time that you need for it."
    with load(letters_folder) as engine:
        digits = of_digits(engine, SHORT)
        engine.chat(system, digits).send("Question 0?").result()
        budget = int(2.9 * engine.cache_stats()["bytes"])
    with load(letters_folder, cache_bytes=budget) as engine:
        chats = [engine.chat(system, digits) for _ in range(4)]
        ends = []
        for i, chat in enumerate(chats):
            ends.append(chat.send(f"Question {i}?").result())
            stats = engine.cache_stats()
            assert stats["bytes"] <= stats["max_bytes"] == budget
        assert engine.cache_stats()["conversations"] == 2
        # Of the first there is the shared start alone, of the last all of it.
        assert chats[0].send("Still there?").result().cached_tokens < ends[0].prompt_tokens
        assert chats[3].send("Still there?").result().cached_tokens > ends[3].prompt_tokens
    with load(letters_folder, cache_bytes=0) as engine:
        chat = engine.chat(options=digits)
        chat.send("One?").result()
        assert chat.send("Two?").result().cached_tokens == 0


def test_busy(tiny_engine: Engine) -> None:
    chat = tiny_engine.chat()
    with held(tiny_engine, lambda: chat.send("Write a long story.")) as generation:
        with pytest.raises(ChatBusy):
            chat.send("Faster!")
        generation.cancel()
    generation.result()
    chat.send("Write a short one.", options=SHORT).result()


def test_a_cancelled_answer_stays_as_far_as_it_came(
    tiny_engine: Engine, digits: GenerationOptions
) -> None:
    chat = tiny_engine.chat(options=replace(digits, max_tokens=200))
    with all_at_once(tiny_engine):
        generation = chat.send("Write a long story about the sea.")
        cancel_at(generation, lambda event: event.text)
    end = generation.result()
    assert end.finish_reason == "cancelled"
    assert chat.messages[-1].text == end.answer
    after = chat.send("Go on.", options=SHORT).result()
    assert after.cached_tokens == end.prompt_tokens + len(end.tokens)


def test_a_question_cancelled_unanswered_leaves_no_trace(tiny_engine: Engine) -> None:
    chat = tiny_engine.chat(options=SHORT)
    with held(tiny_engine, lambda: tiny_engine.generate("Once upon")) as other:
        generation = chat.send("Never mind.")
        generation.cancel()
        generation.result()
        assert chat.messages == ()
        other.cancel()
    chat.send("Hello?").result()
    assert len(chat.messages) == 2


def test_reset(tiny_engine: Engine) -> None:
    chat = tiny_engine.chat()
    with held(tiny_engine, lambda: chat.send("Write a long story.")) as generation:
        chat.reset(system="You are a poet.")
    assert generation.result().finish_reason == "cancelled"
    assert [m.role for m in chat.messages] == ["system"]
    chat.send("Who are you?", options=SHORT).result()
    assert len(chat.messages) == 3


def test_what_the_template_refuses(tiny_engine: Engine) -> None:
    chat = tiny_engine.chat()
    with pytest.raises(PromptError):
        chat.send(5)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="role"):
        tiny_engine.generate([{"role": "bishop", "content": "x"}])
    for part in ({"type": "video"}, {"type": "text"}, 5, None):
        with pytest.raises(PromptError, match="part"):
            tiny_engine.generate([{"role": "user", "content": [part]}])
    with pytest.raises(PromptError, match="user message"):
        tiny_engine.generate([{"role": "system", "content": "x"}], images=Image.new("RGB", (2, 2)))
    assert chat.messages == ()


def test_parts_of_text_are_one_text(tiny_engine: Engine) -> None:
    parts = [{"type": "text", "text": "Good "}, {"type": "text", "text": "day"}]
    one = tiny_engine.generate([{"role": "user", "content": parts}], options=SHORT)
    two = tiny_engine.generate([{"role": "user", "content": "Good day"}], options=SHORT)
    assert one.prompt.tokens == two.prompt.tokens
    assert one.result().tokens == two.result().tokens


def test_user_text_cannot_pose_as_an_answer(tiny_engine: Engine) -> None:
    """A stop string's cut leaves no record of tokens, and still the prefix is reused."""
    chat = tiny_engine.chat(options=SHORT)
    whole = tiny_engine.generate(
        [{"role": "user", "content": "Count to ten."}], options=GenerationOptions(max_tokens=20)
    ).result()
    stop = whole.answer[6:9]
    first = chat.send("Count to ten.", options=GenerationOptions(stop=stop)).result()
    assert first.finish_reason == "stop_string"
    assert chat.messages[-1].text == first.answer == whole.answer[: whole.answer.index(stop)]
    second = chat.send("Go on.").result()
    assert second.cached_tokens >= first.prompt_tokens


def test_chats_from_two_threads(tiny_engine: Engine) -> None:
    ends: list[Any] = []

    def talk(name: str) -> None:
        chat = tiny_engine.chat(system=f"You are {name}.", options=SHORT)
        for question in ("Who are you?", "Really?"):
            ends.append((name, question, chat.send(question).result().answer))

    threads = [threading.Thread(target=talk, args=(name,)) for name in ("Ada", "Bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    threaded = sorted(ends)
    ends.clear()
    talk("Ada")
    talk("Bob")
    assert sorted(ends) == threaded
