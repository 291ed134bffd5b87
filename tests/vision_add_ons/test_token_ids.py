"""Token ids against the tuples that they stand for."""

import copy
import pickle
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision_add_ons.base import ExpandedPrompt
from vision_add_ons.token_ids import TokenIds

ids = st.lists(st.integers(-3, 2**31 - 1) | st.integers(0, 3), max_size=9).map(tuple)
indices = st.none() | st.integers(-10, 10)


@given(ids, ids, st.slices(9), st.integers(0, 3))
def test_they_are_as_a_tuple(a: Any, b: Any, part: slice, token: int) -> None:
    ours, others = TokenIds(a), TokenIds(b)
    assert list(ours) == list(a)
    assert len(ours) == len(a)
    assert bool(ours) == bool(a)
    assert ours[part] == a[part]
    assert (ours == others) == (a == b)
    assert (ours == list(b)) == (a == b)
    assert (b == ours) == (a == b)
    assert hash(ours) == hash(a)
    assert ours + others == a + b
    assert TokenIds.joined([a, others, b]) == a + b + b
    assert (token in ours) == (token in a)
    assert ours.count(token) == a.count(token)
    assert eval(repr(ours)) == a
    assert copy.deepcopy(ours) == pickle.loads(pickle.dumps(ours)) == a
    for i in (0, -1, len(a)):
        assert _or_error(ours.__getitem__, i) == _or_error(a.__getitem__, i)
    for where in ((token,), (token, 1), (token, 1, 3)):
        assert _or_error(ours.index, *where) == _or_error(a.index, *where)


def _or_error(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (IndexError, ValueError) as error:
        return type(error)


def test_nobody_changes_them() -> None:
    given = [1, 2, 3]
    ours: Any = TokenIds(given)
    given.append(4)
    ours.copy().append(4)
    assert ours == [1, 2, 3]
    with pytest.raises(TypeError):
        ours[0] = 5
    with pytest.raises(AttributeError):
        ours.append(5)


def test_mlx_takes_them() -> None:
    assert mx.array(TokenIds([1, 2])).tolist() == [1, 2]
    assert mx.array(TokenIds()).dtype == mx.int32


def test_a_prompt_shares_them() -> None:
    ours = TokenIds([1, 2, 3])
    assert ExpandedPrompt(ours).tokens._ids is ours._ids
    assert TokenIds.joined([(), ours, []])._ids is ours._ids


@pytest.mark.parametrize("token", [2**31, -(2**31) - 1, 2**80])
def test_what_is_no_id(token: int) -> None:
    with pytest.raises(OverflowError):
        TokenIds([1, token])
