"""Rows of very different lengths: which share a lane, and that each is what it is alone."""

import itertools
import random
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from support.at_once import all_at_once
from support.families import FAMILIES

from engine import Engine, Finished, Generation, GenerationOptions, Request, TextDelta, load
from engine.decoding import lanes as lanes_module
from engine.decoding import reading as reading_module
from engine.decoding.company import Company
from engine.decoding.lane import Lane
from engine.decoding.lane_row import LaneRow
from engine.decoding.lanes import SHARE, groups_of
from vision_add_ons.cache_views import plain_caches
from vision_add_ons.testing import EOS, TOLERANCE, Reference, written

LENGTHS = (5, 850, 12, 750)
ENDLESS = {2: -100.0}
"""A bias against the token that ends a text."""


def tokens_of(length: int, seed: int) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(5, 60) for _ in range(length)]


def told(generation: Generation) -> list[tuple[int, float]]:
    *events, end = generation
    assert isinstance(end, Finished)
    if end.error is not None:
        raise end.error
    return [(e.token, e.logprob) for e in events if isinstance(e, TextDelta) and e.token]  # type: ignore[misc]


def assert_same(ours: Sequence[Any], theirs: Sequence[Any]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert [token for token, _ in one] == [token for token, _ in other]
        for (_, a), (_, b) in zip(one, other, strict=True):
            assert abs(a - b) <= TOLERANCE


class Seen:
    """A lane after a step."""

    def __init__(self, lane: Lane) -> None:
        self.lengths = sorted(row.length for row in lane.rows)
        holding = [c for c in lane.caches if hasattr(c, "keys")]  # and not a state
        self.shapes = {(len(lane.rows), c.keys.shape[0], c.size()) for c in holding}
        self.nbytes = sum(cache.nbytes for cache in lane.caches)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that come together are all read before the next step, however slow the machine is."""
    monkeypatch.setattr(reading_module, "GAP", 600.0)
    monkeypatch.setattr(reading_module, "FIRST", 600.0)


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[list[Seen]]:
    """The lanes after each step of those that answer."""
    seen: list[list[Seen]] = []
    step = Company.step

    def watched(company: Company) -> None:
        step(company)
        seen.append([Seen(lane) for lane in company._lanes])

    monkeypatch.setattr(Company, "step", watched)
    return seen


def of_all(rounds: Sequence[list[Seen]], count: int = 4) -> list[list[Seen]]:
    """The rounds with so many rows."""
    return [lanes for lanes in rounds if sum(len(lane.lengths) for lane in lanes) == count]


# --- which rows share a lane -------------------------------------------------------------------


def partitions(rows: Sequence[int]) -> Iterator[list[list[int]]]:
    if not rows:
        yield []
        return
    first, *others = rows
    for rest in partitions(others):
        yield [[first], *rest]
        for i, group in enumerate(rest):
            yield [*rest[:i], [first, *group], *rest[i + 1 :]]


@pytest.mark.parametrize("window", [None, 40])
def test_the_lanes_cost_the_fewest_bytes(seed: int, window: int | None) -> None:
    chance = random.Random(seed)

    def held(length: int) -> float:
        return 3 * length + 2 * min(length, window or length)

    for _ in range(40):
        lengths = [chance.choice((1, 9, 33, 80, 150)) + chance.randrange(9) for _ in range(6)]
        lane = chance.choice((0, 10, 200, 700, 5000))

        def cost(groups: list[list[int]], n: list[int] = lengths, lane: int = lane) -> float:
            return sum(lane + len(g) * held(max(n[i] for i in g)) for g in groups)

        groups = groups_of(lengths, held, lane)
        assert sorted(i for group in groups for i in group) == list(range(6))
        assert cost(groups) == min(map(cost, partitions(range(6))))


def test_rows_of_one_length_share_a_lane() -> None:
    assert groups_of([7, 7, 7], float, 0) == [[0, 1, 2]]


def asked_of(lengths: Sequence[int], count: int = 40) -> list[Request]:
    options = GenerationOptions(max_tokens=count, logprobs=True, logit_bias=ENDLESS)
    return [Request(tokens_of(n, n), options=options, client=n) for n in lengths]


def together(folder: Path, asked: Sequence[Request]) -> list[Any]:
    with load(folder, parallel=len(asked), cache_bytes=0) as engine:
        with all_at_once(engine):
            generations = [engine.submit(request) for request in asked]
        return [told(generation) for generation in generations]


def test_the_long_and_the_short_are_apart(
    letters_folder: Path,
    letters: Engine,
    rounds: list[list[Seen]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is what it is alone, padded no further than the rule has it, and less is held."""
    asked = asked_of(LENGTHS)
    alone = [told(letters.submit(request)) for request in asked]
    assert_same(together(letters_folder, asked), alone)
    weights = Path(letters_folder / "model.safetensors").stat().st_size
    apart = of_all(rounds)
    assert apart
    for lanes in apart:
        assert sorted(len(lane.lengths) for lane in lanes) == [2, 2]
        for lane in lanes:
            assert lane.shapes == {(2, 2, lane.lengths[-1])}
            width = lane.nbytes / lane.lengths[-1] / 2  # too much: there is room beyond
            short, long = lane.lengths
            assert short < 100 or (long - short) * width <= SHARE * weights
        short, long = sorted(lane.lengths[-1] for lane in lanes)
        assert short < 100 < 850 < long
    # In one lane, it is the same, and more is held; by 256 tokens at a time, as mlx-lm makes room.
    rounds.clear()
    monkeypatch.setattr(lanes_module, "SHARE", 1e9)
    assert_same(together(letters_folder, asked), alone)
    padded = of_all(rounds)
    assert all(len(lanes) == 1 for lanes in padded)
    held = max(sum(lane.nbytes for lane in lanes) for lanes in apart)
    assert held < 0.8 * min(lanes[0].nbytes for lanes in padded)


def test_rows_of_like_lengths_stay_in_one_lane(
    letters_folder: Path, letters: Engine, rounds: list[list[Seen]]
) -> None:
    asked = asked_of((30, 31, 38, 50), count=10)
    alone = [told(letters.submit(request)) for request in asked]
    assert_same(together(letters_folder, asked), alone)
    assert {len(lanes) for lanes in rounds} <= {0, 1}


def test_lanes_become_one_when_the_longest_left(
    letters_folder: Path, letters: Engine, rounds: list[list[Seen]]
) -> None:
    """The middle one is nearer to it than to the shortest, and near enough to that alone."""
    asked = [*asked_of((400,), count=5), *asked_of((220, 20), count=50)]
    alone = [told(letters.submit(request)) for request in asked]
    assert_same(together(letters_folder, asked), alone)
    three = [[lane.lengths for lane in lanes] for lanes in of_all(rounds, 3)]
    assert three
    assert {(len(short), len(long)) for short, long in map(sorted, three)} == {(1, 2)}
    assert len(of_all(rounds, 2)[-1]) == 1


RIDING = ("gemma3", "qwen2_vl", "qwen3_vl", "qwen3_5")
FAMILIES_THAT_RIDE = [family for family in FAMILIES if family.name in RIDING]


@pytest.mark.parametrize("family", FAMILIES_THAT_RIDE, ids=lambda family: family.name)
def test_rows_change_lanes_and_stay_what_they_are(
    family: type[Reference],
    tmp_path: Path,
    seed: int,
    rounds: list[list[Seen]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With caches that rotate, and positions that pictures shift; drawn, with penalties.

    Whenever one comes or goes, all are in one lane, or every other one in another, or each alone.
    """
    turn = itertools.count()

    def shuffled(lengths: Sequence[int], *_: Any) -> list[list[int]]:
        rows, apart = list(range(len(lengths))), next(turn) % 3 + 1
        return [part for part in (rows[i::apart] for i in range(apart)) if part]

    monkeypatch.setattr(lanes_module, "groups_of", shuffled)
    reference = family(seed)
    written(reference, tmp_path)
    numbers = np.random.default_rng(seed)
    asked = []
    for i, length in enumerate((50, 4, 30, 9, 60, 12, 5, 40)):
        tokens = tokens_of(length, i)
        pictures = []
        if i % 3 < 2 and reference.image_token is not None:
            shape = (*numbers.integers(20, 60, 2), 3)
            pictures = [Image.fromarray(numbers.integers(0, 255, shape, dtype=np.uint8))]
            tokens.insert(len(tokens) // 2, reference.image_token)
        options = GenerationOptions(
            max_tokens=(6, 20, 14, 10)[i % 4],
            logprobs=True,
            seed=i,
            temperature=i % 2,
            repetition_penalty=1 + i % 3 / 10,
            logit_bias={EOS: -100.0},
        )
        asked.append(Request(tokens, pictures, options, client=i))
    with load(tmp_path) as engine:
        alone = [told(engine.submit(request)) for request in asked]
    with load(tmp_path, parallel=4) as engine:
        with all_at_once(engine):
            generations = [engine.submit(request) for request in asked]
        assert_same([told(generation) for generation in generations], alone)
    assert any(len(lanes) > 1 for lanes in rounds)
    assert any(len(lane.lengths) > 2 for lanes in rounds for lane in lanes)


# --- coming in ---------------------------------------------------------------------------------


def test_those_that_come_at_once_begin_at_once(
    letters_folder: Path, letters: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are run together from the first token on, and the lane is copied once for all."""
    begin, extend = Lane.begin, Lane.extend
    begun, taken = [], []

    def counted(lane: Lane) -> None:
        begun.append(len(lane.rows))
        begin(lane)

    def extended(lane: Lane, others: Sequence[Lane]) -> None:
        taken.append(len(others))
        extend(lane, others)

    monkeypatch.setattr(Lane, "begin", counted)
    monkeypatch.setattr(Lane, "extend", extended)
    asked = asked_of((1, 1, 1), count=5)  # each is read by itself
    alone = [told(letters.submit(request)) for request in asked]
    assert_same(together(letters_folder, asked), alone)
    assert begun == [3]
    assert taken == [2]


def test_one_that_cannot_begin_leaves_the_others(
    letters_folder: Path, letters: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = LaneRow.process

    def broken(row: LaneRow, token: mx.array, logits: mx.array) -> mx.array:
        if row.length == 100:
            raise RuntimeError("planted")
        return process(row, token, logits)

    monkeypatch.setattr(LaneRow, "process", broken)
    running, failing = asked_of((20, 101), count=75)
    expected = letters.submit(running).result().tokens
    with load(letters_folder, parallel=3, cache_bytes=0) as engine:
        answer = engine.submit(running)
        next(event for event in answer if isinstance(event, TextDelta))
        with pytest.raises(RuntimeError, match="planted"):
            engine.submit(failing).result()
        assert answer.result().tokens == expected


def test_a_lane_that_fails_leaves_the_other(
    letters_folder: Path, letters: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Lane.step

    def broken(lane: Lane) -> Any:
        if min(row.length for row in lane.rows) > 300:
            raise RuntimeError("planted")
        return step(lane)

    monkeypatch.setattr(Lane, "step", broken)
    asked = asked_of(LENGTHS)
    with load(letters_folder, parallel=4, cache_bytes=0) as engine:
        with all_at_once(engine):
            generations = [engine.submit(request) for request in asked]
        for i in (1, 3):
            with pytest.raises(RuntimeError, match="planted"):
                generations[i].result()
        ours = [told(generations[i]) for i in (0, 2)]
    monkeypatch.undo()
    assert_same(ours, [told(letters.submit(asked[i])) for i in (0, 2)])


# --- memory ------------------------------------------------------------------------------------


def test_plain_caches_go_when_their_rows_are_in_a_lane(
    letters_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    join, step = Company.join, Company.step
    plain: list[Any] = []
    left: list[int] = []

    def joined(company: Company, answer: Any, *rest: Any) -> None:
        plain.extend(weakref.ref(cache) for cache in plain_caches(answer.kv))
        join(company, answer, *rest)

    def stepped(company: Company) -> None:
        step(company)
        if len(company) == 4 and all(len(lane.rows) > 1 for lane in company._lanes):
            left.append(sum(reference() is not None for reference in plain))

    monkeypatch.setattr(Company, "join", joined)
    monkeypatch.setattr(Company, "step", stepped)
    together(letters_folder, asked_of(LENGTHS))
    assert plain
    assert set(left) == {0}
