"""Damages of a safetensors file: of its header, and of what the header says about the data."""

import json
import math
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.damages.basics import HARMLESS, TENSORS, TYPED, Damage, Undamaged, damage_of, replace
from support.moxin_checkpoint import DINO, SIGLIP

Header = dict[str, Any]


UNUSED = ("attn_pool", "position_ids", "featurizer.norm.")
UNUSED += (f".featurizer.blocks.{DINO.depth - 1}.", f"fused_featurizer.blocks.{SIGLIP.depth - 1}.")
"""Parts of names. Moxin's features come from the last block but one."""


def header_size(content: bytes) -> int:
    return int.from_bytes(content[:8], "little")


def header_of(content: bytes) -> Header:
    return json.loads(content[8 : 8 + header_size(content)])


def tensors_of(header: Header) -> Header:
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def _length_lies(file: Path, rng: random.Random) -> Damage:
    content = file.read_bytes()
    true = header_size(content)
    lies = [0, 1, 2, true - 1, true + 1, true - 8, true + 8, len(content), len(content) - 8]
    lies += [100_000_000, 100_000_001, 2**31, 2**32 + true, 2**63, 2**64 - 1, rng.randrange(2**64)]
    lie = rng.choice(lies)
    replace(file, struct.pack("<Q", lie) + content[8:])
    # Its last bytes may be white space that pads it.
    accepted = (TYPED, HARMLESS) if true - 8 <= lie < true else (TYPED,)
    return damage_of(file, f"a header of {true} bytes says {lie}", accepted)


def _header_edited(file: Path, rng: random.Random) -> Damage:
    content = file.read_bytes()
    start = 8 + header_size(content)
    header = header_of(content)
    name = rng.choice(list(tensors_of(header)))
    edit = rng.choice(_EDITS)
    what = edit(header, name, rng)
    raw = json.dumps(header).encode()
    if "\0" in what:  # a name given twice, which a dictionary cannot hold
        what, extra = what.split("\0")
        raw = raw[:-1] + b"," + extra.encode() + b"}"
    replace(file, struct.pack("<Q", len(raw)) + raw + content[start:])
    # Tensors that the model has no use for may be absent, or of any shape.
    valid = edit in (_other_dtype, _other_shape, _removed_tensor, _renamed, _extra_tensor)
    valid &= any(part in name for part in UNUSED)
    # What is not in the index does not count.
    indexed = (file.parent / "model.safetensors.index.json").exists()
    valid |= edit is _extra_tensor and indexed
    accepted = (TYPED, HARMLESS) if valid else (TYPED,)
    names = [other[:30] for other in header if other]
    return damage_of(file, f"{name}: {what}", accepted, *TENSORS, *names)


def _other_dtype(header: Header, name: str, rng: random.Random) -> str:
    value = rng.choice(
        [
            *("F64", "F16", "BF16", "I64", "I32", "I8", "U8", "U32", "BOOL", "C64", "F8_E4M3"),
            *("F4", "f32", "X9", "", 32, None, ["F32"]),
        ]
    )
    header[name]["dtype"] = value
    return f"dtype {value!r}"


def _other_shape(header: Header, name: str, rng: random.Random) -> str:
    old = header[name]["shape"]
    shape: list[Any] = list(old)
    place = rng.randrange(len(shape)) if shape else 0
    one = shape[place] if shape else 1
    changes: list[Any] = [
        shape[::-1],
        [math.prod(shape)],
        [*shape, 1],
        [1, *shape],
        shape[:-1],
        [],
        None,
        "4",
        {},
        [[*shape]],
    ]
    for side in (0, -one, one + 1, one - 1, 2 * one, 2**31, 2**32 + one, 2**63, 2**64, 10**30):
        changes.append([*shape[:place], side, *shape[place + 1 :]])
    changes += [[*shape[:place], s, *shape[place + 1 :]] for s in (float(one), str(one), None)]
    changes.append([-side for side in shape])
    if shape and one % 2 == 0:
        changes.append([*shape[:place], one // 2, 2, *shape[place + 1 :]])
    shape = rng.choice([c for c in changes if json.dumps(c) != json.dumps(old)])
    header[name]["shape"] = shape
    return f"shape {shape!r} for {old}"


def _other_offsets(header: Header, name: str, rng: random.Random) -> str:
    start, end = header[name]["data_offsets"]
    size = end - start
    by = rng.choice([1, 4, size, 64])
    last = max(entry["data_offsets"][1] for entry in tensors_of(header).values())
    changes: list[Any] = [
        [start + by, end + by],
        [start - by, end - by],
        [start, end + by],
        [start, end - by],
        [start + by, end],
        [end, start],
        [last, last + size],
        [start, start],
        [-size, 0],
        [2**63, 2**63 + size],
        [2**64 - size, 2**64],
        [start, end + 2**64],
        [float(start), float(end)],
        [str(start), str(end)],
        [start],
        [start, end, end],
        [],
        None,
        end,
        {"start": start, "end": end},
        [None, end],
    ]
    other = rng.choice(list(tensors_of(header).values()))["data_offsets"]
    if other != [start, end]:
        changes.append(list(other))
    offsets = rng.choice(changes)
    header[name]["data_offsets"] = offsets
    return f"offsets {offsets!r} for {[start, end]}"


def _swapped_offsets(header: Header, name: str, rng: random.Random) -> str:
    size = _size(header[name])
    others = [n for n, entry in tensors_of(header).items() if _size(entry) != size]
    if not others:
        raise Undamaged
    other = rng.choice(others)
    mine, theirs = header[name]["data_offsets"], header[other]["data_offsets"]
    header[name]["data_offsets"], header[other]["data_offsets"] = theirs, mine
    return f"offsets swapped with {other}"


def _size(entry: Header) -> int:
    return entry["data_offsets"][1] - entry["data_offsets"][0]


def _removed_key(header: Header, name: str, rng: random.Random) -> str:
    key = rng.choice(["dtype", "shape", "data_offsets"])
    del header[name][key]
    return f"no {key}"


def _removed_tensor(header: Header, name: str, rng: random.Random) -> str:
    del header[name]
    return "removed from the header"


def _no_object(header: Header, name: str, rng: random.Random) -> str:
    entry = header[name]
    header[name] = rng.choice([None, 1, "x", [], {}, [entry["dtype"], entry["shape"]], [entry]])
    return f"is {header[name]!r}"


def _extra_tensor(header: Header, name: str, rng: random.Random) -> str:
    entry = dict(header[name])
    if rng.random() < 0.5:
        entry |= {"shape": [0], "data_offsets": [entry["data_offsets"][0]] * 2}
    header[rng.choice(["extra.weight", "", name + "x", "\u00e9", "x" * 1000])] = entry
    return "another of the same bytes"


def _renamed(header: Header, name: str, rng: random.Random) -> str:
    new = rng.choice([name[:-1], name + ".", name.upper(), "x." + name, "", name.replace(".", "/")])
    header[new] = header.pop(name)
    return f"renamed to {new!r}"


def _twice(header: Header, name: str, rng: random.Random) -> str:
    entry = dict(header[name])
    entry["dtype"] = rng.choice([entry["dtype"], "I32", "U32"])
    twin = json.dumps({name: entry})[1:-1]
    if rng.random() < 0.3:
        twin = twin.replace(name[0], f"\\u{ord(name[0]):04x}", 1)
    return f"given twice\0{twin}"


def _deep(header: Header, name: str, rng: random.Random) -> str:
    value: Any = 1
    for _ in range(rng.choice([10, 150, 600])):
        value = {"a": value} if rng.random() < 0.5 else [value]
    header[rng.choice([name, "__metadata__"])] = value
    return "nested deeply"


def _other_metadata(header: Header, name: str, rng: random.Random) -> str:
    header["__metadata__"] = rng.choice([1, "x", [], {"format": 1}, {"format": None}, {"a": {}}])
    return f"metadata {header['__metadata__']!r}"


_EDITS: tuple[Callable[[Header, str, random.Random], str], ...] = (
    *(_other_dtype, _other_shape, _other_shape, _other_offsets, _other_offsets, _swapped_offsets),
    *(_removed_key, _removed_tensor, _no_object, _extra_tensor, _renamed, _twice, _deep),
    _other_metadata,
)


def _header_replaced(file: Path, rng: random.Random) -> Damage:
    content = file.read_bytes()
    start = 8 + header_size(content)
    raw = content[8:start]
    what, new = rng.choice(
        [
            ("not UTF-8", raw.replace(b"weight", b"we\xffght", 1)),
            ("a byte order mark", b"\xef\xbb\xbf" + raw),
            ("UTF-16", raw.decode().encode("utf-16")),
            ("a list", b"[" + raw.rstrip() + b"]"),
            ("no tensors", b"{}"),
            ("nothing", b""),
            ("brackets", b"[" * 100_000),
            ("nested braces", b'{"a":' * 50_000),
            ("zeros behind it", raw + b"\0" * 8),
            ("another behind it", raw + raw),
            ("zeros", b"\0" * len(raw)),
        ]
    )
    replace(file, struct.pack("<Q", len(new)) + new + content[start:])
    return damage_of(file, f"the header is {what}", (TYPED,), *TENSORS)


WEIGHTS = (_length_lies, *[_header_edited] * 6, _header_replaced)
