"""An engine in a forked process: typed errors at once, and no process that hangs."""

import subprocess
from pathlib import Path

import pytest
from support.processes import python

pytestmark = pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")

START = """
import os, sys
from engine import *
from engine import loading

def in_child(work):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            sys.stdout.flush()
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0

def told(name, call):
    try:
        call()
    except SightlineError as error:
        print(name, type(error).__name__)
    else:
        print(name, "works")

folder, talk = sys.argv[1:]
short = GenerationOptions(max_tokens=3)
"""

USE = """
with load(folder) as engine:
    chat = engine.chat(options=short)
    chat.send("Hi").result()
    answer = chat.send("Go on", options=GenerationOptions(max_tokens=1500))

    def use():
        told("submit", lambda: engine.submit(Request("abc")))
        told("generate", lambda: engine.generate("abc"))
        told("send", lambda: chat.send("Hi"))
        told("reset", chat.reset)
        told("save", lambda: chat.save(talk))
        told("chat", engine.chat)
        told("tokenize", lambda: engine.tokenize("abc"))
        told("stats", engine.cache_stats)
        told("adapter", engine.unload_adapter)
        told("result", answer.result)
        told("iterate", lambda: next(answer))
        told("load", lambda: load(folder))
        told("cancel", answer.cancel)
        told("close", engine.close)

    in_child(use)
    answer.cancel(), answer.result()
    print(chat.send("Hi").result().finish_reason)
"""

LOAD = """
def use():
    for _ in range(2):
        with load(folder) as engine:
            print(engine.generate("abc", options=short).result().finish_reason)

in_child(use)
"""

OWN_MLX = """
import mlx.core as mx
mx.eval(mx.ones(3) + 1)
in_child(lambda: told("load", lambda: load(folder)))
"""


def run(program: str, folder: Path, talk: Path) -> str:
    command = python(START + program, folder, talk)
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_forked_process_uses_no_engine_of_the_other(letters_folder: Path, tmp_path: Path) -> None:
    *told, end = run(USE, letters_folder, tmp_path / "talk").splitlines()
    errors = dict(line.split() for line in told)
    assert {errors.pop("cancel"), errors.pop("close")} == {"works"}
    assert len(errors) == 12
    assert set(errors.values()) == {"ForkedProcess"}
    assert end == "length"
    assert not (tmp_path / "talk").exists()


def test_a_forked_process_loads_where_nothing_was(letters_folder: Path, tmp_path: Path) -> None:
    assert run(LOAD, letters_folder, tmp_path).split() == ["length", "length"]


def test_mlx_in_the_other_process_is_refused(letters_folder: Path, tmp_path: Path) -> None:
    assert run(OWN_MLX, letters_folder, tmp_path).split() == ["load", "ForkedProcess"]
