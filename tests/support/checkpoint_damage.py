"""Random damages of a checkpoint folder, and what a load may make of each.

Not among them: changed bytes of a tensor's data, and a header that is another valid one for the
same bytes (two tensors of one size that change places). No reader can tell those.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from support.damages import header, json_values
from support.damages.basics import (
    ANOTHER,
    HARMLESS,
    TENSORS,
    TYPED,
    Damage,
    Undamaged,
    damage_of,
    replace,
)

Sort = Callable[[Path, random.Random], Damage]


class Damages:
    """Damaged copies of one whole checkpoint; each field of its JSON files has its turn."""

    def __init__(self, whole: Path, rng: random.Random) -> None:
        self.whole, self.rng = whole, rng
        self.fields: dict[str, list[json_values.FieldPath]] = {}

    def write(self, target: Path) -> Damage:
        """One more, in `target`. What is not damaged there is hard links to the whole one."""
        while True:
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(self.whole, target, copy_function=os.link)
            file = target / self._chosen()
            sorts: list[Sort] = [*ANY]
            if file.suffix == ".safetensors":
                sorts += header.WEIGHTS
            else:
                sorts += [self._field] * 20 + [json_values.text_damage] * 4
            if "index" in file.name:
                sorts += [json_values.index_damage] * 25
            try:
                return self.rng.choice(sorts)(file, self.rng)
            except Undamaged:
                continue

    def _chosen(self) -> str:
        """A file, those more often that are more to this project."""
        shares = {
            file.name: 1.0
            for file in sorted(self.whole.iterdir())
            if file.suffix in (".json", ".safetensors")
        }
        weights = [name for name in shares if name.endswith(".safetensors")]
        shares |= dict.fromkeys(weights, 8.0 / len(weights)) | {"config.json": 6.0}
        shares |= {name: 3.0 for name in shares if "index" in name}
        return self.rng.choices(list(shares), list(shares.values()))[0]

    def _field(self, file: Path, rng: random.Random) -> Damage:
        left = self.fields.setdefault(file.name, [])
        if not left:
            left += json_values.fields(json.loads(file.read_bytes()), rng)
            rng.shuffle(left)
        return json_values.value_damage(file, left.pop(), rng)


def _absence(file: Path) -> tuple[str, ...]:
    required = file.name in ("config.json", "tokenizer.json") or file.suffix == ".safetensors"
    # Without an index, all the files that it would have named count.
    return (TYPED,) if required else (TYPED, HARMLESS, ANOTHER)


ABOUT = ("tokenizer", "image processor", *TENSORS)
"""What may be missed where a file is absent."""


def _missing(file: Path, _: random.Random) -> Damage:
    file.unlink()
    return damage_of(file, "missing", _absence(file), *ABOUT)


def _empty(file: Path, _: random.Random) -> Damage:
    replace(file, b"")
    return damage_of(file, "empty", (TYPED,), "tokenizer")


def _no_file(file: Path, rng: random.Random) -> Damage:
    what = rng.choice(["a folder", "a pipe", "a link to itself", "a link to nothing"])
    file.unlink()
    if what == "a folder":
        file.mkdir()
    elif what == "a pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(file.name if what == "a link to itself" else "absent")
    return damage_of(file, what, _absence(file), *ABOUT)


def _truncated(file: Path, rng: random.Random) -> Damage:
    content = file.read_bytes()
    if file.suffix == ".safetensors":
        start = 8 + header.header_size(content)
        ends = [start + e["data_offsets"][1] for e in _entries(content)]
        borders = [1, 7, 8, 9, start - 1, start, start + 1, len(content) - 1, rng.choice(ends)]
    else:
        content = content.rstrip()
        borders = [1, len(content) - 1]
    size = rng.choice([*borders, rng.randrange(1, len(content))])
    if size == len(content):
        raise Undamaged
    replace(file, content[:size])
    return damage_of(file, f"cut to {size} of {len(content)} bytes", (TYPED,), "tokenizer")


def _entries(content: bytes) -> list[header.Header]:
    return list(header.tensors_of(header.header_of(content)).values())


def _moved(file: Path, rng: random.Random) -> Damage:
    """Bytes put in or taken out, anywhere."""
    old = file.read_bytes()
    content = bytearray(old)
    place, count = rng.randrange(len(content)), rng.choice([1, 1, 2, 8, 100])
    if rng.random() < 0.5:
        content[place:place] = rng.choice([rng.randbytes(count), b"\0" * count, b" " * count])
        return _changed(file, f"{count} bytes more at {place}", old, bytes(content))
    del content[place : place + count]
    return _changed(file, f"{count} bytes less at {place}", old, bytes(content))


def _flipped(file: Path, rng: random.Random) -> Damage:
    """Bytes of a JSON file, or of the header, that became others."""
    old = file.read_bytes()
    content = bytearray(old)
    end = 8 + header.header_size(old) if file.suffix == ".safetensors" else len(old)
    places = [rng.randrange(end) for _ in range(rng.choice([1, 1, 1, 2, 5]))]
    for place in places:
        content[place] = rng.choice([content[place] ^ 1 << rng.randrange(8), rng.randrange(256)])
    return _changed(file, f"other bytes at {places}", old, bytes(content))


def _changed(file: Path, what: str, old: bytes, new: bytes) -> Damage:
    replace(file, new)
    if file.suffix == ".safetensors":
        # A header's white space and metadata mean nothing, and some tensors are of no use.
        return damage_of(file, what, (TYPED, HARMLESS), *TENSORS)
    return json_values.changed(file, what, old, new)


ANY: tuple[Sort, ...] = (_missing, _empty, _no_file, *(_truncated, _moved, _flipped) * 2)
