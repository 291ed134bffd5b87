import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decoding.stop_strings import StopStrings


def run(stops: list[str], chunks: list[str]) -> tuple[str, str | None]:
    watcher = StopStrings(stops)
    released = "".join(watcher.feed(chunk) for chunk in chunks)
    return released + watcher.flush(), watcher.matched


def by_definition(stops: list[str], text: str) -> tuple[str, str | None]:
    """The same, one character at a time and by looking at everything each time."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def held_by_definition(stops: list[str], text: str) -> int:
    prefixes = {stop[:length] for stop in stops for length in range(1, len(stop))}
    return max((len(p) for p in prefixes if text.endswith(p)), default=0)


@pytest.mark.parametrize(
    ("stops", "chunks", "released", "matched"),
    [
        ([], ["any", "", "thing"], "anything", None),
        (["END"], ["the E", "ND is near"], "the ", "END"),
        (["END"], ["the END is near"], "the ", "END"),
        (["END"], ["the end, the EN", "Z"], "the end, the ENZ", None),
        (["END"], ["the EN"], "the EN", None),
        (["END"], ["END"], "", "END"),
        (["aab"], ["aaa", "ab"], "aa", "aab"),
        (["abab", "x"], ["ab", "aab", "ab"], "aba", "abab"),
        # the one that ends first wins, even inside a partial match of another
        (["abcd", "bc"], ["abcd"], "a", "bc"),
        (["abcd", "bc"], ["ab", "c"], "a", "bc"),
        # of two that end together, the longer
        (["c", "abc"], ["ab", "c"], "", "abc"),
        (["abc", "c"], ["xc"], "x", "c"),
        # a prefix of another stop always ends first
        (["ab", "abc"], ["abc"], "", "ab"),
        (["\n\n"], ["one\n", "two\n\nthree"], "one\ntwo", "\n\n"),
        (["👩‍👧"], ["a 👩", "\u200d", "👧 b"], "a ", "👩‍👧"),
        (["👩‍👧"], ["a 👩", "\u200d", "👦 b"], "a 👩‍👦 b", None),
        (["é"], ["e\u0301"], "e\u0301", None),
        (["a", "a"], ["ba"], "b", "a"),
    ],
)
def test_table(stops: list[str], chunks: list[str], released: str, matched: str | None) -> None:
    assert run(stops, chunks) == (released, matched)


def test_only_what_may_become_a_stop_is_held_back() -> None:
    watcher = StopStrings(["<end>"])
    assert [watcher.feed(chunk) for chunk in ["a <", "e", "m>", "<<en"]] == ["a ", "", "<em>", "<"]
    assert watcher.flush() == "<en"
    assert watcher.flush() == ""


def test_nothing_follows_a_match() -> None:
    watcher = StopStrings(["."])
    assert watcher.feed("One. Two. ") == "One"
    assert watcher.feed("Three") == ""
    assert watcher.flush() == ""
    assert watcher.matched == "."


def test_flushed_text_is_no_part_of_a_later_match() -> None:
    watcher = StopStrings(["ab"])
    assert (watcher.feed("a"), watcher.flush(), watcher.feed("b")) == ("", "a", "b")
    assert watcher.matched is None


ALPHABETS = st.sampled_from(["ab", "abc", "a", "a👩\u200d👧", "e\u0301é\n"])


@st.composite
def searches(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    letters = draw(ALPHABETS)
    stops = draw(st.lists(st.text(letters, min_size=1, max_size=6), max_size=4))
    return stops, draw(st.lists(st.text(letters, max_size=6), max_size=10))


@given(searches())
@settings(max_examples=400)
def test_any_chunking_gives_the_result_of_the_definition(search: tuple[list, list]) -> None:
    stops, chunks = search
    text = "".join(chunks)
    expected = by_definition(stops, text)
    assert run(stops, chunks) == expected
    assert run(stops, [text]) == expected
    assert run(stops, list(text)) == expected
    released, matched = expected
    assert text.startswith(released + (matched or ""))
    assert matched is not None or released == text


@given(searches())
@settings(max_examples=200)
def test_text_is_released_as_soon_as_it_is_safe(search: tuple[list, list]) -> None:
    stops, chunks = search
    watcher = StopStrings(stops)
    text = released = ""
    for chunk in chunks:
        text += chunk
        released += watcher.feed(chunk)
        if watcher.matched is not None:
            break
        assert released == text[: len(text) - held_by_definition(stops, text)]


@pytest.mark.parametrize("last", ["b", "a"])
def test_long_repetitive_stops_take_linear_time(last: str) -> None:
    stop = "a" * 999 + last
    text = ("a" * 998 + "c") * 200
    started = time.process_time()
    assert run([stop, "a" * 500 + "b" + "a" * 500], [*text, stop]) == (text, stop)
    assert time.process_time() - started < 5  # some 200 million steps if it were quadratic
