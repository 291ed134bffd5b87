"""Sequences found again by the longest start that they share with another one."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Generic, TypeVar

from vision_add_ons.token_ids import TokenIds

T = TypeVar("T")


class _Node(Generic[T]):
    """`label` leads to here from the parent; `values` are those whose sequence ends here."""

    __slots__ = ("children", "label", "values")

    def __init__(self, label: Sequence[Hashable]) -> None:
        self.label = label
        self.children: dict[Hashable, _Node[T]] = {}
        self.values: list[T] = []


class PrefixTree(Generic[T]):
    """A radix tree: edges carry whole stretches, and only sequences that differ part ways.

    A lookup takes time in proportion to the sequence looked up, however many are stored, and two
    nodes at most are kept for each of those.
    """

    def __init__(self) -> None:
        self._root: _Node[T] = _Node(())

    def insert(self, key: Sequence[Hashable], value: T) -> None:
        """Store `value` under `key`, `TokenIds` or a tuple, which may have others."""
        node, done = self._root, 0
        while done < len(key):
            child = node.children.get(key[done])
            if child is None:
                child = node.children[key[done]] = _Node(key[done:])
                node = child
                break
            shared = common_prefix(child.label, key[done:])
            if shared < len(child.label):
                child = self._split(node, child, shared)
            node, done = child, done + shared
        node.values.append(value)

    def remove(self, key: Sequence[Hashable], value: T) -> None:
        """Take back what `insert` stored. Raises ValueError or KeyError if it is not there."""
        path = [self._root]
        done = 0
        while done < len(key):
            path.append(path[-1].children[key[done]])
            done += len(path[-1].label)
        path[-1].values.remove(value)
        while len(path) > 1 and not path[-1].values and len(path[-1].children) < 2:
            node = path.pop()
            if node.children:
                (only,) = node.children.values()
                only.label = joined(node.label, only.label)
                path[-1].children[only.label[0]] = only
                break
            del path[-1].children[node.label[0]]

    def longest(self, key: Sequence[Hashable]) -> Iterator[tuple[int, T]]:
        """Values by the length of the start that their sequences share with `key`, longest first.

        Of sequences that go on beyond what they share, one stands for all of its branch.
        """
        path: list[tuple[int, _Node[T], _Node[T] | None]] = []
        node, done = self._root, 0
        while True:
            child = node.children.get(key[done]) if done < len(key) else None
            shared = 0
            if child is not None:
                shared = common_prefix(child.label, key[done : done + len(child.label)])
            path.append((done, node, child))
            done += shared
            if child is None or shared < len(child.label):
                break
            node = child
        if child is not None:
            yield done, _any_value(child)
        for length, node, followed in reversed(path):
            for value in reversed(node.values):
                yield length, value
            for other in reversed(node.children.values()):
                if other is not followed:
                    yield length, _any_value(other)
                    break

    def beginning_with(self, key: Sequence[Hashable]) -> Iterator[T]:
        """The values of all sequences that are `key`, or go on from it."""
        node, done = self._root, 0
        while done < len(key):
            child = node.children.get(key[done])
            if child is None:
                return
            wanted = key[done : done + len(child.label)]
            if common_prefix(child.label, wanted) < len(wanted):
                return
            node, done = child, done + len(wanted)
        below = [node]
        while below:
            node = below.pop()
            yield from node.values
            below += node.children.values()

    @staticmethod
    def _split(parent: _Node[T], child: _Node[T], at: int) -> _Node[T]:
        """Put a node into the edge to `child`, `at` elements behind its beginning."""
        middle: _Node[T] = _Node(child.label[:at])
        parent.children[middle.label[0]] = middle
        child.label = child.label[at:]
        middle.children[child.label[0]] = child
        return middle


def _any_value(node: _Node[T]) -> T:
    """A value below a node or at it, of the branch that began last: there is always one."""
    while not node.values:
        node = next(reversed(node.children.values()))
    return node.values[-1]


def common_prefix(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """How many leading elements two sequences share."""
    if isinstance(a, TokenIds) and isinstance(b, TokenIds):
        return a.shared(b)
    low, high = 0, min(len(a), len(b))
    # Comparing slices runs in C, so halving beats a loop over elements by far.
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def joined(a: Sequence[Hashable], b: Sequence[Hashable]) -> Sequence[Hashable]:
    """One sequence and another behind it; token ids where both are."""
    return a + b if isinstance(a, TokenIds) and isinstance(b, TokenIds) else (*a, *b)
