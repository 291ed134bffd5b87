"""`sightline serve` as a program of its own."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SERVE = """
import sys
sys.modules["torch"] = None  # the engine needs none, and transformers takes seconds to import it
from engine.cli import main
sys.exit(main(["serve", *sys.argv[1:]]))
"""


@contextmanager
def served(*arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The program at work, and its address."""
    command = [sys.executable, "-c", SERVE, "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"serving .* at (http://\S+)", line):
                yield process, found[1]
                return
        raise AssertionError("the server did not start")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
