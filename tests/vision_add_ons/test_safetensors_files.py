"""Files that are damaged while they are read; the others, in test_broken_checkpoints.py."""

import subprocess
from pathlib import Path

from support.processes import python

FAILING = """
import os, sys
from pathlib import Path

import mlx.core as mx

from vision_add_ons.safetensors_files import evaluate, read_safetensors

file = Path(sys.argv[1])
stream = mx.default_stream(mx.cpu)
for _ in range(12):
    mx.save_safetensors(str(file), {str(i): mx.zeros((10,)) for i in range(3000)})
    tensors = read_safetensors(file)
    os.truncate(file, 3000)
    try:
        evaluate(*tensors.values())
    except RuntimeError as error:
        assert "Unable to read" in str(error)
    else:
        raise AssertionError("it was read")
    mx.eval(mx.ones((3,)) + 1)
    mx.synchronize(stream)
"""


def test_nobody_else_is_told_of_a_failed_read(tmp_path: Path) -> None:
    """Thousands fail at once, of which MLX would raise some where the next thing is computed.

    In processes of their own, and few times in each: now and then MLX counts what failed as under
    way for ever, and with ten of these it waits for them.
    """
    for _ in range(2):
        subprocess.run(python(FAILING, tmp_path / "model.safetensors"), check=True, timeout=600)
