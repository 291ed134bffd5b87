"""Writing safetensors a tensor at a time, so that a model never has to fit into memory."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np

from vision_add_ons.errors import BrokenWeights
from vision_add_ons.safetensors_files import evaluate

DTYPES = {
    mx.float32: "F32",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.uint8: "U8",
    mx.uint16: "U16",
    mx.uint32: "U32",
    mx.uint64: "U64",
    mx.int8: "I8",
    mx.int16: "I16",
    mx.int32: "I32",
    mx.int64: "I64",
    mx.bool_: "BOOL",
}

KEPT_BUFFERS = 1 << 28
"""Bytes written until MLX is told to give back the buffers that it keeps for the next tensor."""


def write_safetensors(
    file: Path,
    tensors: dict[str, mx.array],
    metadata: dict[str, str],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write `tensors`, which is emptied on the way: each is computed, written and forgotten.

    Like `mx.save_safetensors`, which computes all of them first. `progress` is called with the
    bytes of each tensor, and may raise. Raises OSError, or `BrokenWeights` naming a tensor that
    cannot be computed, as where a file cannot be read on.
    """
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    since = 0
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(head)) + head)
        for name in list(tensors):
            tensor = tensors.pop(name)
            try:
                flat = tensor.reshape(-1).view(mx.uint8)
                evaluate(flat)
                raw = np.asarray(flat)
            except (RuntimeError, ValueError) as error:
                raise BrokenWeights(f"{name} cannot be read or computed: {error}") from error
            out.write(raw.data)
            since += tensor.nbytes
            if progress:
                progress(tensor.nbytes)
            del tensor, flat, raw
            if since > KEPT_BUFFERS:
                mx.clear_cache()
                since = 0
