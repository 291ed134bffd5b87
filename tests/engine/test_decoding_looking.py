"""Pictures of prompts that begin together: encoded several at once, each as if it were alone."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from support.at_once import all_at_once
from support.moxin_reference import MoxinReference

from engine import Engine, Finished, GenerationOptions, NumericalError, Request, load
from engine.decoding import looking, reading
from vision_add_ons.base import Picture, VisionAddOn
from vision_add_ons.testing import TOLERANCE, WORDS, Photo, relative_error, written

SHORT = GenerationOptions(max_tokens=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(MoxinReference(5), tmp_path_factory.mktemp("moxin"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The digests of the pictures that were encoded together; any number takes no time."""
    found: list[list[str]] = []
    encode_all = looking.FeatureCache.encode_all

    def watched(self: Any, pictures: Sequence[Picture]) -> list[mx.array]:
        found.append([picture.digest for picture in pictures])
        return encode_all(self, pictures)

    monkeypatch.setattr(looking.FeatureCache, "encode_all", watched)
    monkeypatch.setattr(reading, "GAP", 1e9)
    return found


@pytest.fixture(params=[None, 0], ids=["kept", "not kept"])
def engine(folder: Path, request: pytest.FixtureRequest, asked: object) -> Iterator[Engine]:
    with load(folder, parallel=8, cache_bytes=request.param) as engine:
        # The first shows how long one takes.
        engine.submit(Request(WORDS[:3], [photo(0)], SHORT)).result()
        yield engine


def photo(i: int) -> Image.Image:
    return Photo(40 + i, 30, i).image


def together(engine: Engine, *pictures: list[Image.Image]) -> list[Finished]:
    with all_at_once(engine):
        asked = [engine.submit(Request(WORDS[:6], given, SHORT)) for given in pictures]
    return [generation.result() for generation in asked]


def test_one_of_each_prompt_at_once(engine: Engine, asked: list[list[str]]) -> None:
    del asked[:]
    pictures = [[photo(i), photo(i + 10)][: 1 + i % 2] for i in range(1, 6)]
    ends = together(engine, *pictures)
    assert [end.images_encoded for end in ends] == [2, 1, 2, 1, 2]
    assert [len(batch) for batch in asked] == [5, 3]
    assert len({digest for batch in asked for digest in batch}) == 8
    del asked[:]
    alone = [engine.submit(Request(WORDS[:6], given, SHORT)).result() for given in pictures]
    assert [end.tokens for end in alone] == [end.tokens for end in ends]


def test_not_more_than_the_add_on_takes(engine: Engine, asked: list[list[str]]) -> None:
    del asked[:]
    add_on = engine._worker.kit.add_on  # type: ignore[union-attr]
    assert add_on is not None
    assert add_on.images_at_once == 8
    together(engine, *[[photo(i), photo(i + 10), photo(i + 20)] for i in range(1, 9)])
    assert [len(batch) for batch in asked] == [8, 8, 8]


def test_one_that_stands_in_two_prompts(engine: Engine, asked: list[list[str]]) -> None:
    del asked[:]
    ends = together(engine, [photo(1)], [photo(1)], [photo(2)])
    kept = engine._worker.call(lambda memory: memory.budget.max_bytes > 0).result()
    assert [len(batch) for batch in asked] == ([2] if kept else [2, 1])
    assert sum(end.images_encoded for end in ends) == sum(map(len, asked))


def test_as_many_as_there_is_time_for(
    engine: Engine, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    del asked[:]
    monkeypatch.setattr(reading, "GAP", 0.0)
    together(engine, [photo(1)], [photo(2)], [photo(3)])
    assert [len(batch) for batch in asked] == [1, 1, 1]


def test_one_that_fails_is_alone_in_that(
    engine: Engine, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_on = engine._worker.kit.add_on  # type: ignore[union-attr]
    encode = type(add_on).encode_images

    def broken(self: VisionAddOn, pictures: Sequence[Picture]) -> list[mx.array]:
        rows = encode(self, pictures)  # type: ignore[arg-type]
        return [
            r * math.nan if p.size == (42, 30) else r for r, p in zip(rows, pictures, strict=True)
        ]

    monkeypatch.setattr(type(add_on), "encode_images", broken)
    del asked[:]
    with all_at_once(engine):
        given = [Request(WORDS[:6], [photo(i)], SHORT) for i in range(1, 5)]
        generations = [engine.submit(request) for request in given]
    for i, generation in enumerate(generations):
        if i == 1:
            with pytest.raises(NumericalError, match="vision add-on"):
                generation.result()
        else:
            assert generation.result().images_encoded == 1
    # Together, each of them alone, and once more to be told why.
    assert [len(batch) for batch in asked] == [4, 1, 1, 1, 1, 1]


def test_rows_are_those_of_one_alone(engine: Engine) -> None:
    """And hold nothing of their neighbours' in memory."""
    photos = [Photo(40, 30, i) for i in range(4)]

    def encoded(_: object) -> list[Any]:
        add_on = engine._worker.kit.add_on  # type: ignore[union-attr]
        assert add_on is not None
        rows = add_on.encode_images(photos)
        mx.eval(rows)
        mx.synchronize()
        before, size = mx.get_active_memory(), rows[0].nbytes
        del rows[1:]
        assert before - mx.get_active_memory() >= 3 * size
        return [np.array(rows[0]), np.array(add_on.encode_image(photos[0]))]

    ours, theirs = engine._worker.call(encoded).result()
    assert relative_error(ours, theirs) <= TOLERANCE
