"""Files of KV caches: what is written comes back to the bit, and nothing else comes back."""

import random
import resource
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache, QuantizedKVCache, RotatingKVCache, load_prompt_cache

from engine.memory import kv_file
from engine.memory.kv_file import Contents, UnusableFile
from engine.memory.kv_state import as_caches, fit, frozen, snapshot

LENGTH = 40
KEY = (*range(30), *["digest"] * 10)


def caches(dtype: mx.Dtype = mx.float32) -> list[Any]:
    """One of each kind, with `LENGTH` tokens."""

    def rows() -> mx.array:
        return mx.random.normal((1, 2, LENGTH, 64)).astype(dtype)

    kinds = [KVCache(), RotatingKVCache(max_size=16), QuantizedKVCache(group_size=32, bits=8)]
    for cache in kinds:
        cache.update_and_fetch(rows(), rows())
    return kinds


def write(path: Path, kv: list[Any], **changes: Any) -> Contents:
    fields = {
        "fingerprint": "this model",
        "key": KEY,
        "variant": (8, 32, 0),
        "borders": (25,),
        "trims": False,
        "least": 0,
    }
    contents = Contents(**{**fields, **changes})
    kept = frozen(kv) + (as_caches(kv, snapshot(kv)) if contents.borders else [])
    assert kv_file.write(path, contents, kept) == path.stat().st_size
    return contents


def equal(a: list[Any], b: list[Any]) -> bool:
    ours, theirs = (tree_flatten([c.state for c in kv]) for kv in (a, b))
    return len(ours) == len(theirs) and all(
        mx.array_equal(x, y) and x.dtype == y.dtype if isinstance(x, mx.array) else x == y
        for (_, x), (_, y) in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_everything_comes_back(tmp_path: Path, seed: int, dtype: mx.Dtype) -> None:
    mx.random.seed(seed)
    kv = caches(dtype)
    path = tmp_path / "talk.kv.safetensors"
    contents = write(path, kv)
    told, read, snapshots = kv_file.read(path, "this model", 3)
    assert told == contents == kv_file.describe(path, "this model")
    assert equal(read, frozen(kv))
    assert equal(as_caches(read, snapshots[25]), as_caches(kv, snapshot(kv)))
    # mlx-lm reads the same from it.
    assert equal(load_prompt_cache(str(path))[:3], frozen(kv))
    assert path.stat().st_mode & 0o077 == 0
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_is_written_stays_though_the_conversation_goes_on(tmp_path: Path, seed: int) -> None:
    mx.random.seed(seed)
    kv = caches()
    before = [mx.array(a) for _, a in tree_flatten([c.state for c in kv]) if hasattr(a, "shape")]
    mx.eval(before)
    kept = frozen(kv)
    for cache in kv:  # in place, and with what a trimmed cache writes over
        cache.update_and_fetch(*[mx.random.normal((1, 2, 1, 64)) for _ in "kv"])
    kv[0].trim(20)
    for cache in kv:
        cache.update_and_fetch(*[mx.random.normal((1, 2, 7, 64)) for _ in "kv"])
    after = [a for _, a in tree_flatten([c.state for c in kept]) if hasattr(a, "shape")]
    assert all(mx.array_equal(a, b).item() for a, b in zip(before, after, strict=True))


def test_no_more_is_written_than_there_is(tmp_path: Path) -> None:
    """A cache that was trimmed keeps its room until it is written."""
    kv = [KVCache()]
    kv[0].update_and_fetch(*[mx.zeros((1, 2, 4000, 64)) for _ in "kv"])
    kv[0].trim(3960)
    fit(kv, spare=0)
    path = tmp_path / "short.kv.safetensors"
    write(path, kv, borders=(), trims=True, variant=None)
    assert path.stat().st_size < 2 * 2 * 40 * 64 * 4 + 2000


def test_no_damage_passes(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / "talk.kv.safetensors"
    write(path, caches())
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for i in range(300):
        damaged = bytearray(whole)
        place = chance.randrange(header if i % 2 else len(whole))
        kind = chance.choice(("bit", "cut", "more", "zeros"))
        if kind == "bit":
            damaged[place] ^= 1 << chance.randrange(8)
        elif kind == "cut":
            del damaged[place:]
        elif kind == "more":
            damaged += bytes(1 + chance.randrange(40))
        else:
            damaged[place : place + 64] = bytes(len(damaged[place : place + 64]))
        if bytes(damaged) == whole:
            continue
        path.write_bytes(damaged)
        with pytest.raises(UnusableFile):
            kv_file.read(path, "this model", 3)
    path.write_bytes(whole)
    kv_file.read(path, "this model", 3)


def test_whose_it_is(tmp_path: Path) -> None:
    path = tmp_path / "talk.kv.safetensors"
    write(path, caches())
    for layers in (1, 2, 4):
        with pytest.raises(UnusableFile, match="does not hold"):
            kv_file.read(path, "this model", layers)
    with pytest.raises(UnusableFile, match="another model"):
        kv_file.read(path, "that model", 3)
    mx.save_safetensors(str(path), {"x": mx.zeros(4)})
    for look in (lambda p: kv_file.read(p, "this", 3), lambda p: kv_file.describe(p, "this")):
        with pytest.raises(UnusableFile):
            look(path)
        with pytest.raises(FileNotFoundError):
            look(tmp_path / "none.kv.safetensors")


SENSELESS: list[dict[str, Any]] = [
    {"key": [1, 2.5]},
    {"key": [1, 2**31]},
    {"key": [["digest", -1]]},
    {"key": [["digest", 10**9]]},
    {"key": []},
    {"key": KEY[:-1]},
    {"borders": (400,)},
    {"borders": (0,)},
    {"trims": None},
    {"variant": "eight"},
    {"fingerprint": None},
]


@pytest.mark.parametrize("change", SENSELESS, ids=str)
def test_a_sound_file_that_makes_no_sense(
    tmp_path: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "talk.kv.safetensors"
    if "digest" not in change.get("key", KEY):
        monkeypatch.setattr(kv_file, "_packed", list)  # written as it stands
    write(path, caches(), **change)
    with pytest.raises(UnusableFile):
        kv_file.read(path, "this model", 3)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "talk.kv.safetensors"
    write(path, caches())
    whole = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="cannot be written"):
            write(path, caches())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
