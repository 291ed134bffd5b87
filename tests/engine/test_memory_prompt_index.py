"""The tree against a list that is searched from end to end."""

from hypothesis import given
from hypothesis import strategies as st

from engine.memory.prompt_index import PrefixTree, common_prefix
from vision_add_ons.token_ids import TokenIds

keys = st.lists(st.integers(0, 2), max_size=8).flatmap(
    lambda key: st.sampled_from([tuple(key), TokenIds(key)])
)
Key = tuple[int, ...] | TokenIds


@given(keys, keys)
def test_common_prefix(a: Key, b: Key) -> None:
    length = common_prefix(a, b)
    assert a[:length] == b[:length]
    assert length == min(len(a), len(b)) or a[length] != b[length]


@given(st.lists(st.tuples(keys, st.booleans()), max_size=40), keys)
def test_longest_is_that_of_a_search_from_end_to_end(
    steps: list[tuple[Key, bool]], wanted: Key
) -> None:
    """After any insertions and removals: every yield is true, and none longer is missed."""
    tree: PrefixTree[int] = PrefixTree()
    stored: list[tuple[Key, int]] = []
    for i, (key, remove) in enumerate(steps):
        if remove and stored:
            tree.remove(*stored.pop(i % len(stored)))
        else:
            tree.insert(key, i)
            stored.append((key, i))
    found = list(tree.longest(wanted))
    lengths = [length for length, _ in found]
    assert lengths == sorted(lengths, reverse=True)
    by_value = {value: key for key, value in stored}
    for length, value in found:
        assert common_prefix(by_value[value], wanted) == length
    assert max(lengths, default=None) == max(
        (common_prefix(key, wanted) for key, _ in stored), default=None
    )
    whole = [value for length, value in found if len(by_value[value]) == length]
    assert sorted(whole) == sorted(v for k, v in stored if k == wanted[: len(k)])
    beginning = sorted(v for k, v in stored if k[: len(wanted)] == wanted)
    assert sorted(tree.beginning_with(wanted)) == beginning


@given(st.lists(keys, max_size=30))
def test_an_emptied_tree_keeps_nothing(stored: list[Key]) -> None:
    tree: PrefixTree[int] = PrefixTree()
    for i, key in enumerate(stored):
        tree.insert(key, i)
    for i, key in enumerate(stored):
        tree.remove(key, i)
    assert not tree._root.children
    assert not tree._root.values
