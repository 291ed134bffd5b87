"""What is kept of past requests: nothing twice, and what nobody owns goes first."""

from pathlib import Path
from typing import Any

import pytest
from support.short_chats import SHORT, of_digits, talk

from engine import Engine, Finished, GenerationOptions, Request, load
from engine.memory.kv_file import Contents
from engine.memory.memory import kv_path
from engine.memory.prompt_cache import MAX_ANSWERS
from engine.memory.prompt_index import covers

PROMPTS = [f"Question number {i}, about rivers and the sea:" for i in range(7)]


def drawn(seed: int, **changes: Any) -> GenerationOptions:
    return GenerationOptions(**{"max_tokens": 8, "temperature": 1.0, "seed": seed, **changes})


def kept(engine: Engine) -> tuple[int, int]:
    stats = engine.cache_stats()
    assert stats["bytes"] == stats["conversation_bytes"]
    return stats["conversations"], stats["bytes"]


def whole(end: Finished) -> int:
    """The tokens whose KV a conversation has at least after an answer."""
    return end.prompt_tokens + len(end.tokens) - 1


def test_a_request_asked_again_is_kept_once(letters_folder: Path) -> None:
    with load(letters_folder) as engine:
        engine.generate("Name a river.", options=SHORT).result()
        before = kept(engine)
        for _ in range(11):
            engine.generate("Name a river.", options=SHORT).result()
        assert kept(engine) == before
        assert before[0] == 1


@pytest.mark.parametrize("lengths", [(4, 20), (20, 4), (20, 4, 20)])
def test_the_start_of_another_is_not_kept(letters_folder: Path, lengths: tuple[int, ...]) -> None:
    with load(letters_folder) as engine:
        for most in lengths:
            options = GenerationOptions(max_tokens=most)
            end = engine.generate("Name a river.", options=options).result()
        assert engine.cache_stats()["conversations"] == 1
        end = engine.generate("Name a river.", options=GenerationOptions(max_tokens=20)).result()
        again = engine.generate([*range(5, 9)], options=SHORT).result()
        assert (end.cached_tokens, again.cached_tokens) == (end.prompt_tokens - 1, 0)


def test_two_that_go_on_alike_each_keep_their_own(letters_folder: Path) -> None:
    with load(letters_folder) as engine:
        ada, bob = (talk(engine, turns=1) for _ in range(2))
        assert engine.cache_stats()["conversations"] == 2
        engine.generate([{"role": "user", "content": "Question 0, about rivers?"}], options=SHORT)
        for chat in (ada, bob):
            before = chat.last
            assert before is not None
            assert chat.send("Why?").result().cached_tokens >= whole(before)
        assert engine.cache_stats()["conversations"] == 2


def test_the_latest_answers_to_a_prompt_are_kept(letters_folder: Path) -> None:
    """Drawn again and again; by nobody, and by chats that are gone."""
    with load(letters_folder) as engine:
        ends = [engine.generate("A story:", options=drawn(i)).result() for i in range(8)]
        assert len({end.tokens for end in ends}) > MAX_ANSWERS + 1
        assert engine.cache_stats()["conversations"] == MAX_ANSWERS
        assert all(end.cached_tokens == end.prompt_tokens - 1 for end in ends[1:])
        latest = engine.tokenize("A story:") + list(ends[-1].tokens)
        assert engine.generate([*latest, 9], options=SHORT).result().cached_tokens >= whole(
            ends[-1]
        )
    with load(letters_folder) as engine:
        for i in range(8):
            engine.chat(options=drawn(i)).send("A story, please.").result()
        assert engine.cache_stats()["conversations"] <= MAX_ANSWERS + 1


def test_an_owner_has_one_conversation(letters_folder: Path) -> None:
    """What it left behind is nobody's, and makes room before anybody else's latest."""
    with load(letters_folder) as engine:
        talk(engine, turns=1)
        size = engine.cache_stats()["bytes"]
    for owner in (object(), "Ada", 5):
        with load(letters_folder, cache_bytes=int(3.5 * size)) as engine:
            bob = talk(engine, turns=1)
            before = bob.last
            for start in ("First", "Later", "third"):
                prompt = engine.tokenize(f"{start} of all, a question: is it?")
                engine.submit(Request(prompt, (), SHORT, owner)).result()
            other = engine.submit(Request(engine.tokenize("x" * 32), (), SHORT, [])).result()
            assert other.cached_tokens == 0
            assert before is not None
            assert bob.send("Why?").result().cached_tokens >= whole(before)


def test_what_nobody_owns_goes_first(letters_folder: Path) -> None:
    with load(letters_folder) as engine:
        talk(engine, turns=1)
        size = engine.cache_stats()["bytes"]
    with load(letters_folder, cache_bytes=4 * size) as engine:
        chat, gone = talk(engine, turns=1), engine.chat(system="Another one.", options=SHORT)
        gone.send("Really?").result()
        begun = [{"role": "system", "content": "Another one."}]
        begun.append({"role": "user", "content": "Really?"})
        for i in range(20):
            if i == 10:
                assert engine.generate(begun, options=SHORT).result().cached_tokens > 20
                del gone
            engine.generate(f"{i}. What is it, and what is it not?", options=SHORT).result()
        assert engine.generate(begun, options=SHORT).result().cached_tokens < 5
        before = chat.last
        assert before is not None
        assert chat.send("Why?").result().cached_tokens >= whole(before)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_many_requests_of_few_prompts(letters_folder: Path, temperature: float) -> None:
    """Memory is flat after each prompt's first few; conversations beside them stay warm."""
    with load(letters_folder) as engine:
        digits = of_digits(engine, SHORT)
        chat, figures = engine.chat(options=digits), []
        said: list[Any] = []
        last = None
        for i in range(42):
            end = engine.generate(
                PROMPTS[i % 7], options=drawn(i, temperature=temperature)
            ).result()
            assert i < 7 or end.cached_tokens == end.prompt_tokens - 1
            figures.append(kept(engine))
            if i % 21 == 20:
                before = chat.last
                end = chat.send("And then?").result()
                assert before is None or end.cached_tokens >= whole(before)
                # Nobody's, as those through the server are.
                said.append({"role": "user", "content": "Tell me more."})
                now = engine.generate(said, options=digits).result()
                assert last is None or now.cached_tokens >= whole(last)
                said.append({"role": "assistant", "content": now.answer})
                last = now
        each = MAX_ANSWERS if temperature else 1
        assert figures[20][0] == 7 * each
        assert figures[-1][0] == 7 * each + 2
        growth = figures[-1][1] - figures[20][1]
        assert growth <= (chat.last.prompt_tokens + last.prompt_tokens + 100) * _token(engine)


def _token(engine: Engine) -> int:
    return engine.report.kv_bytes_per_token


def test_bytes_are_those_of_the_tokens(letters_folder: Path, tmp_path: Path) -> None:
    with load(letters_folder) as engine:
        chat = talk(engine, turns=1)
        end = chat.last
        assert end is not None
        nbytes = kept(engine)[1]
        assert nbytes in [n * _token(engine) for n in (whole(end), whole(end) + 1)]
        # Almost all of mlx-lm's block of 256: not worth a copy, until it is written.
        long = engine.tokenize("x" * 240)
        engine.submit(Request(long, (), GenerationOptions(max_tokens=8), chat._owner)).result()
        assert kept(engine)[1] == nbytes + 256 * _token(engine)
        path = tmp_path / "talk"
        chat.save(path).result(600)
        now = kept(engine)[1] - nbytes
        assert now in [n * _token(engine) for n in (247, 248)]
        assert now < kv_path(path).stat().st_size < now + 8192
        assert engine._worker.memory.budget.nbytes == kept(engine)[1]  # type: ignore[union-attr]


def test_a_file_stays_a_conversation_s_though_its_entry_is_another_s_start(
    letters_folder: Path, tmp_path: Path
) -> None:
    cache_dir = tmp_path / "cache"
    with load(letters_folder, cache_dir=cache_dir) as engine:
        history = [{"role": "user", "content": "Question 0, about rivers?"}]
        talk(engine, turns=1)  # and is gone
        engine.generate(history, options=GenerationOptions(max_tokens=60)).result()
        assert engine.cache_stats()["conversations"] == 1
    assert len(list(cache_dir.rglob("*.safetensors"))) == 1
    with load(letters_folder, cache_dir=cache_dir) as engine:
        end = engine.generate(history, options=SHORT).result()
        assert end.disk_tokens == end.prompt_tokens - 1


def entry(length: int, trims: bool = True, borders: tuple[int, ...] = (), least: int = 0) -> Any:
    return Contents("", list(range(length)), None, borders, trims, least)


@pytest.mark.parametrize(
    ("longer", "shorter", "expected"),
    [
        (entry(9), entry(5), True),
        (entry(9), entry(9), True),
        (entry(9, least=4), entry(5), False),
        (entry(9), entry(5, least=4), True),
        (entry(9), entry(5, trims=False, borders=(2,)), True),
        (entry(9, trims=False, borders=(5,)), entry(5), False),
        (entry(9, trims=False, borders=(2, 5)), entry(5, trims=False, borders=(2,)), True),
        (entry(9, trims=False, borders=(2,)), entry(5, trims=False, borders=(2,)), False),
        (entry(9, trims=False, borders=(5,)), entry(5, trims=False, borders=(2,)), False),
        (entry(5, trims=False, borders=(2,)), entry(5, trims=False, borders=(2,)), True),
    ],
)
def test_an_entry_stands_for_another_if_it_serves_all_that_it_does(
    longer: Any, shorter: Any, expected: bool
) -> None:
    assert covers(longer, shorter) is expected


def test_a_conversation_is_not_copied_for_a_few_words_of_another(letters: Engine) -> None:
    def held(chat: Any) -> object:
        return letters._worker.call(lambda memory: memory.prompts.of(chat._owner).kv[0]).result()  # type: ignore[union-attr]

    first, second = letters.chat(options=SHORT), letters.chat(options=SHORT)
    for chat in (first, second):
        chat.send("hello there").result()
    before = held(second)
    first.send("abc def").result()
    assert second.send("abc xyz").result().cached_tokens > 0
    assert held(second) is before
