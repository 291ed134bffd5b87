"""Making the default model in a cache of its own: by another process, without a network."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}


FILES = {
    *("config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "LICENSE", "README.md"),
}


def start(code: str, cache: Path, **env: str) -> subprocess.Popen[str]:
    head = "import os, signal\nfrom pathlib import Path\nfrom model_kit import demo, smollm2\n"
    head += f"cache = Path({str(cache)!r})\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **OFFLINE, **env},
    )
