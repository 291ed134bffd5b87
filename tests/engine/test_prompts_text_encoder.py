"""Long texts: within a stated bound, cancelled at once, and nobody waits for another's."""

import random
import sys
import threading
import time
from pathlib import Path

import pytest

from engine import ContextExceeded, Engine, GenerationOptions, PromptError
from engine.prompts.text_encoder import LONG_TEXT, MOST_PARTS, MOST_TEXT, PIECE, TextEncoder
from model_kit.kit import load_model_kit

WAIT = 600


def long_text(length: int) -> str:
    return "".join(random.Random(length).choices("abcdefgh ", k=length))


def test_the_largest_text_is_stated(letters: Engine) -> None:
    half = "a" * (MOST_TEXT // 2)
    chat = letters.chat(half)
    for call in (
        lambda: letters.generate("a" * (MOST_TEXT + 1)),
        lambda: letters.tokenize("a" * (MOST_TEXT + 1)),
        lambda: chat.send(half + "a"),
    ):
        with pytest.raises(ContextExceeded, match="characters, and the most is 4,194,304"):
            call()
    assert "4,194,304" in (Engine.submit.__doc__ or "")
    assert "4,194,304" in (chat.send.__doc__ or "")
    with pytest.raises(ContextExceeded, match="the context ends at 2048"):
        letters.chat().send("a" * 4096)
    chat.reset()
    assert chat.send("a", options=GenerationOptions(max_tokens=1)).result(WAIT)


def test_what_is_far_too_long_is_not_all_encoded(letters_folder: Path) -> None:
    encoder = TextEncoder(load_model_kit(letters_folder, vocab_only=True).tokenizer)
    asked = []
    encode = encoder.encode

    def counts(text: str) -> list[int]:
        asked.append(len(text))
        return encode(text)

    encoder.encode = counts  # type: ignore[method-assign]
    for text, context in (("a" * 50_000, None), ("a" * 50_000, 50_000), ("a" * 50_000, 12_500)):
        encoder.check_fits(text, context)  # so few are counted when they are encoded
    assert not asked
    with pytest.raises(ContextExceeded, match="it has more than 12499 tokens"):
        encoder.check_fits("a" * 50_000, 12_499)
    assert sum(asked) < 2 * 12_499 + PIECE
    asked.clear()
    with pytest.raises(ContextExceeded, match="the context ends at 999"):
        encoder.check_fits("\U00012000" * 1000 + "a" * MOST_TEXT, 999)
    assert asked == [PIECE]
    # Long tokens, of which enough fit: counted to the end, and no more is said.
    long = "".join(map(str, [10**90] * 700))
    encoder.encode = lambda text: [0] * (len(text) // 90)  # type: ignore[method-assign]
    encoder.check_fits(long, 750)


def test_how_many_parts_there_may_be(letters: Engine) -> None:
    user = {"role": "user", "content": "a"}
    part = {"type": "text", "text": "a"}
    for messages in (
        [user] * (MOST_PARTS + 1),
        [{"role": "user", "content": [part] * (MOST_PARTS // 2 + 1)}] * 2,
    ):
        with pytest.raises(ContextExceeded, match="messages or parts, and the most is 16,384"):
            letters.generate(messages)
    assert "16,384" in (Engine.submit.__doc__ or "")
    with pytest.raises(ContextExceeded, match="the context ends at 2048"):
        letters.generate([{"role": "user", "content": [part] * MOST_PARTS}])


def test_cancelling_does_not_wait_for_the_tokenizer(letters: Engine) -> None:
    chat = letters.chat()
    stop = threading.Event()
    stop.set()
    answer = chat.send(long_text(MOST_TEXT // 4), cancel=stop)
    assert answer.result(WAIT).finish_reason == "cancelled"
    assert answer.result().prompt_tokens == 0
    assert chat.messages == ()
    stop.clear()
    assert chat.send("Hi", cancel=stop, options=GenerationOptions(max_tokens=1)).result(WAIT)


def test_what_is_not_cancelled_is_the_same(letters: Engine) -> None:
    options = GenerationOptions(max_tokens=1)
    with pytest.raises(ContextExceeded, match="the context ends at 2048"):
        letters.chat().send(long_text(LONG_TEXT + 1), cancel=threading.Event())
    with pytest.raises(PromptError, match="half a character"):
        letters.chat().send("a" * LONG_TEXT + "\ud800", cancel=threading.Event())
    assert letters.chat().send("a", cancel=threading.Event(), options=options).result(WAIT)


def test_a_long_text_lets_go_of_the_interpreter(letters_folder: Path) -> None:
    encoder = TextEncoder(load_model_kit(letters_folder, vocab_only=True).tokenizer)
    text, turns, over = long_text(2**14), 0, False

    def take_turns() -> None:
        nonlocal turns
        while not over:
            turns += 1
            time.sleep(0)

    other = threading.Thread(target=take_turns)
    interval = sys.getswitchinterval()
    other.start()
    try:
        sys.setswitchinterval(1000)  # nobody is made to let go of it
        for encode in (encoder.encode, encoder.encode_with_starts):
            before = turns
            for _ in range(1000):  # the other thread may be kept from taking it
                encode(text)
                if turns > before:
                    break
            else:
                raise AssertionError(f"{encode} does not let go of it")
    finally:
        sys.setswitchinterval(interval)
        over = True
        other.join()
