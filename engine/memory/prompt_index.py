"""Which of the stored KV caches serves most of a prompt: they lie in radix trees, by their keys."""

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from vision_add_ons.token_ids import TokenIds

if TYPE_CHECKING:
    from engine.prompts.builder import Prompt

T = TypeVar("T")


class Stored(Protocol):
    """A KV cache in memory or in a file, by what it holds."""

    @property
    def key(self) -> Sequence[Hashable]:
        """What its tokens stand for; see `Prompt.key`."""

    @property
    def variant(self) -> Hashable:
        """`GenerationOptions.kv_variant` of the requests that it serves."""

    @property
    def borders(self) -> Collection[int]:
        """The lengths that it can go back to, where its caches rotate."""

    @property
    def trims(self) -> bool:
        """Whether it can go back to any length."""

    @property
    def least(self) -> int:
        """The length below which it serves nothing: a cold run would not have quantized there."""


E = TypeVar("E", bound=Stored)


class PromptIndex(Generic[E]):
    """Stored KV caches by variant and by their tokens and pictures."""

    def __init__(self) -> None:
        self._trees: defaultdict[Hashable, PrefixTree[E]] = defaultdict(PrefixTree)
        self.count = 0
        """How many there are."""

    def add(self, entry: E) -> None:
        for end in _ends(entry):
            self._trees[entry.variant].insert(entry.key[:end], entry)
        self.count += 1

    def remove(self, entry: E) -> None:
        """Raises ValueError or KeyError if it is not there."""
        for end in _ends(entry):
            self._trees[entry.variant].remove(entry.key[:end], entry)
        self.count -= 1

    def longest(self, prompt: "Prompt", variant: Hashable, beyond: int = 0) -> tuple[E | None, int]:
        """The entry that serves most of a prompt, if that is more than `beyond` tokens."""
        best, best_length = None, beyond
        tree = self._trees.get(variant)
        for common, entry in tree.longest(prompt.key) if tree else ():
            if common <= best_length:
                break
            length = usable(entry, prompt, common)
            if length > best_length:
                best, best_length = entry, length
        return best, best_length

    def starts_of(self, entry: E) -> list[E]:
        """The entries whose tokens begin those of `entry`, or are the same."""
        tree = self._trees.get(entry.variant)
        found = tree.longest(entry.key) if tree else ()
        return [other for common, other in found if common == len(other.key)]

    def beginning_with(self, key: Sequence[Hashable], variant: Hashable) -> set[E]:
        """The entries whose tokens are `key`, or begin with it."""
        tree = self._trees.get(variant)
        return set(tree.beginning_with(key)) if tree else set()


def covers(longer: Stored, shorter: Stored) -> bool:
    """Whether an entry serves whatever another one does that is its start, or the same."""
    if longer.least > shorter.least:
        return False
    return longer.trims or (not shorter.trims and _ends(shorter) <= _ends(longer))


def usable(entry: Stored, prompt: "Prompt", common: int) -> int:
    """How much of an entry can serve a prompt with which it shares `common` tokens; 0 for none."""
    length = min(common, len(prompt.tokens) - 1)
    if prompt.spans:
        length = prompt.cut(length)
    if length < len(entry.key) and not entry.trims:
        # No picture is cut at a border, so going back to an earlier one keeps them whole.
        length = max((n for n in entry.borders if n <= length), default=0)
    return length if length >= entry.least else 0


def _ends(entry: Stored) -> set[int]:
    """The lengths at which a search has to come upon an entry."""
    return {*entry.borders, len(entry.key)}


@dataclass(slots=True, eq=False)
class _Node(Generic[T]):
    """`label` leads to here from the parent; `values` are those whose sequence ends here."""

    label: Sequence[Hashable]
    children: "dict[Hashable, _Node[T]]" = field(default_factory=dict)
    values: list[T] = field(default_factory=list)


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
    both = isinstance(a, TokenIds) and isinstance(b, TokenIds)
    return TokenIds.joined((a, b)) if both else (*a, *b)  # type: ignore[arg-type]
