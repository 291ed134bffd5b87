"""What followed the latest tokens where they stood before."""

from collections.abc import Sequence

import mlx.core as mx
from hypothesis import given
from hypothesis import strategies as st

from engine.drafting.lookup import AT_ONCE, LENGTHS, PromptLookup


def searched(tokens: Sequence[int], count: int) -> list[int]:
    """The same by looking for it: the latest place of the longest run."""
    for length in LENGTHS:
        if length > len(tokens):
            continue
        end = list(tokens[-length:])
        for place in range(len(tokens) - 1, length - 1, -1):
            if list(tokens[place - length : place]) == end:
                found = list(tokens[place:])
                while len(found) < count:
                    found.append(found[len(found) - len(tokens) + place])
                return found[:count]
    return []


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=20),
    st.integers(1, 8),
)
def test_it_finds_what_a_search_finds(pieces: list[list[int]], count: int) -> None:
    lookup, history = PromptLookup(), list[int]()
    for *known, last in pieces:
        history += known
        lookup.ready(history)
        drafted = lookup.draft(history, mx.array([last]), count)
        found = searched([*history, last], count)
        assert ([] if drafted is None else drafted.tolist()) == found
        history.append(last)


def test_it_waits_only_for_what_ends_as_before() -> None:
    lookup = PromptLookup()
    assert not lookup.ready([1, 2, 3, 4, 5])
    assert not lookup.ready([1, 2, 3, 4, 5, 2])
    assert lookup.ready([1, 2, 3, 4, 5, 2, 3])
    drafted = lookup.draft([1, 2, 3, 4, 5, 2, 3], mx.array([4]), 3)
    assert drafted is not None
    assert drafted.tolist() == [5, 2, 3]


def test_a_long_history_holds_no_step_up() -> None:
    """It is got to know in parts; nothing is guessed before all of it is known."""
    lookup, history = PromptLookup(), [*range(2 * AT_ONCE), 7, 8, 9]
    assert [lookup.ready(history) for _ in range(3)] == [False, False, True]
    drafted = lookup.draft(history, mx.array([10]), 2)
    assert drafted is not None
    assert drafted.tolist() == [11, 12]
