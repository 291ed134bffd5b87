"""Quantizing a random checkpoint of 1 GB, beside `mlx_lm.convert` on the same folder.

Each run has a process of its own, whose peak memory counts with everything that it imports.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx

SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 9,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
SHARDS = 2

MEASURED = """
import json, resource, time
start = time.perf_counter()
{code}
seconds = time.perf_counter() - start
import mlx.core as mx
from pathlib import Path
status = Path("/proc/self/status")
if status.exists():  # there the figure of `resource` begins with that of the parent
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    memory = 1024 * int(line.split()[1])
else:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({{"seconds": seconds, "memory": memory, "arrays": mx.get_peak_memory()}}))
"""
OURS = "from model_kit import quantize; quantize({source!r}, {target!r}, bits=4, embeddings=True)"
THEIRS = """
from model_kit.blas import preload_openblas; preload_openblas()
from mlx_lm import convert; convert({source!r}, {target!r}, True, q_bits=4, q_group_size=64)
"""


def conversions(demo: Path, rounds: int) -> Iterator[dict[str, dict[str, float]]]:
    """Seconds, bytes of the process and bytes of arrays at their peak: `ours` and `theirs`.

    And under `bound` what a peak is measured by: the larger of one shard and of the result.
    """
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "source"
        largest = _write(source, demo)
        for _ in range(rounds):
            row = {}
            for name, code in (("ours", OURS), ("theirs", THEIRS)):
                target = Path(directory) / name
                row[name] = _run(code.format(source=str(source), target=str(target)))
                result = sum(file.stat().st_size for file in target.glob("*.safetensors"))
                shutil.rmtree(target)
            yield {**row, "bound": {"memory": max(largest, result)}}


def _write(folder: Path, demo: Path) -> int:
    """A Mistral of random bfloat16 weights; the bytes of its largest shard."""
    from mlx_lm.models import llama

    config = {**json.loads((demo / "config.json").read_text()), **SHAPE, "torch_dtype": "bfloat16"}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, folder)
    from mlx.utils import tree_flatten

    model = llama.Model(llama.ModelArgs.from_dict(config))
    names = [name for name, _ in tree_flatten(model.parameters())]
    shapes = {name: array.shape for name, array in tree_flatten(model.parameters())}
    weight_map, largest = {}, 0
    for i in range(SHARDS):
        file = folder / f"model-{i + 1:05}-of-{SHARDS:05}.safetensors"
        own = names[i * len(names) // SHARDS : (i + 1) * len(names) // SHARDS]
        tensors = {n: (0.02 * mx.random.normal(shapes[n])).astype(mx.bfloat16) for n in own}
        mx.save_safetensors(str(file), tensors, {"format": "pt"})
        weight_map |= dict.fromkeys(own, file.name)
        largest = max(largest, file.stat().st_size)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return largest


def _run(code: str) -> dict[str, float]:
    command = [sys.executable, "-c", MEASURED.format(code=code)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found
