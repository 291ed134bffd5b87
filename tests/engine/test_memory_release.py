"""Closing an engine gives its memory back to the system."""

import platform
import subprocess
from pathlib import Path

import pytest
from support.processes import python

CLOSING = """
import sys
from pathlib import Path

from engine import GenerationOptions, load

def resident():
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) // 1024

engine = load(sys.argv[1])
engine.chat(options=GenerationOptions(max_tokens=2)).send("Hello!").result()
loaded = resident()
engine.close()
print(loaded, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has to be told")
def test_a_closed_engine_leaves_no_model_in_memory(demo: Path) -> None:
    told = subprocess.check_output(python(CLOSING, demo), text=True)
    loaded, closed = map(int, told.split())
    # The weights take more than 500 MB; without being told, glibc keeps nearly all of them.
    assert closed < loaded - 300


def test_no_collection_has_to_come_first(letters_folder: Path) -> None:
    """No cycle holds them for as long as Python does not look for cycles."""
    code = """
import gc, sys

from engine import GenerationOptions, load

gc.collect()
gc.disable()
with load(sys.argv[1]) as engine:
    engine.generate("Question?", options=GenerationOptions(max_tokens=8)).result()
import mlx.core as mx
print(mx.get_active_memory())
"""
    assert int(subprocess.check_output(python(code, letters_folder), text=True)) < 10_000
