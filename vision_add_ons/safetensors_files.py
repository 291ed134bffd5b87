"""Reading a safetensors file that may be damaged: MLX alone trusts what its header says."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx

from vision_add_ons.errors import BrokenWeights, UnsupportedCheckpoint
from vision_add_ons.json_files import each_once


def read_safetensors(file: Path) -> dict[str, mx.array]:
    """The tensors of one file by name, not yet read.

    Raises `BrokenWeights`, or `UnsupportedCheckpoint` for numbers that MLX has not.

    The `safetensors` package checks the header against itself and against the file's size: that
    the tensors lie side by side, as long as their shapes say, and fill the file. It takes the
    last of several tensors of one name, and any dtype and shape of the format.
    """
    from safetensors import SafetensorError, safe_open

    if not file.is_file():  # to open a pipe would wait for whoever writes to it
        raise BrokenWeights(f"{file} is not a file; fetch it again")
    try:
        with safe_open(str(file), "mlx"):
            header = read_header(file)
            tensors = mx.load(str(file), format="safetensors")
    except (SafetensorError, RuntimeError, ValueError, OSError) as error:
        message = " ".join(str(error).split())[:200]
        if "unsupported dtype" in message:  # a whole file, with other numbers than MLX has
            raise UnsupportedCheckpoint(
                f"{file} holds numbers that MLX cannot read ({message}): take the checkpoint in "
                "bfloat16, or quantized by MLX"
            ) from error
        raise BrokenWeights(
            f"{file} cannot be read as safetensors ({message}); fetch the file again"
        ) from error
    assert isinstance(tensors, dict)
    if "" in tensors:
        raise BrokenWeights(f"{file} holds a tensor without a name; fetch the file again")
    for name, array in tensors.items():
        if list(array.shape) != header[name]["shape"]:  # it has 32 bits for each side
            raise BrokenWeights(f"{file}: {name} has a shape beyond what MLX can hold")
    return tensors


def evaluate(*arrays: mx.array) -> None:
    """Compute arrays that may have to be read first.

    MLX reads on a thread of the CPU's stream, and `mx.eval` may return before that has failed: only
    waiting for the stream tells. Raises RuntimeError.
    """
    try:
        mx.eval(*arrays)
        mx.synchronize(mx.default_stream(mx.cpu))
    except RuntimeError:
        forget_failures()
        raise


def forget_failures() -> None:
    """After an error of MLX's, wait for what else may have failed on this thread's CPU stream.

    MLX raises one error, and keeps those of other reads that were under way for whoever computes
    next there. What cannot be mended here: now and then MLX 0.32 counts a read that failed as under
    way for ever, and once there are more than ten of these, it waits for them without end. It takes
    hundreds of loads that the disk fails to read: files of another length than they say are refused
    before.
    """
    for _ in range(10_000):
        with suppress(RuntimeError):
            mx.synchronize(mx.default_stream(mx.cpu))
            return


def read_header(file: Path) -> dict[str, Any]:
    """What a file says of its tensors. Raises OSError, or ValueError for a name given twice."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header: dict[str, Any] = json.loads(opened.read(size), object_pairs_hook=each_once)
    return header
