"""Files that are damaged while they are read; the others, in test_broken_checkpoints.py."""

import os
from pathlib import Path

import mlx.core as mx
import pytest

from vision_add_ons.safetensors_files import evaluate, read_safetensors


def test_nobody_else_is_told_of_a_failed_read(tmp_path: Path) -> None:
    """Several fail at once, of which MLX would raise some where the next thing is computed."""
    file = tmp_path / "model.safetensors"
    stream = mx.default_stream(mx.cpu)
    for _ in range(150):
        mx.save_safetensors(str(file), {str(i): mx.zeros((10,)) for i in range(300)})
        tensors = read_safetensors(file)
        os.truncate(file, 3000)
        with pytest.raises(RuntimeError, match="Unable to read"):
            evaluate(*tensors.values())
        mx.eval(mx.ones((3,)) + 1)
        mx.synchronize(stream)
