"""The chat as somebody at a keyboard meets it."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.no_openblas import WITHOUT_OPENBLAS
from support.processes import COMMAND, python


class Keyboard:
    """A process in a terminal of its own, and what its screen has shown."""

    def __init__(self, *command: str) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execv(command[0], command)
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.screen = ""

    def type(self, keys: str) -> None:
        """The screen is forgotten first: what is waited for next is the answer to this."""
        self.screen = ""
        os.write(self.terminal, keys.encode())

    def wait_for(self, text: str, seconds: float = 600) -> str:
        """The screen, once it shows the text; an empty text waits for the end of the process."""
        end = time.monotonic() + seconds
        while not text or text not in self.screen:
            assert time.monotonic() < end, f"no {text!r} in {self.screen!r}"
            if select.select([self.terminal], [], [], 0.1)[0]:
                try:
                    shown = os.read(self.terminal, 4096)
                except OSError:  # how Linux tells that the other side is closed
                    shown = b""
                if not shown:
                    assert not text, f"it ended without {text!r}: {self.screen!r}"
                    break
                self.screen += shown.decode(errors="replace")
        return self.screen

    def insist(self, keys: str, text: str) -> None:
        """Type again and again, until the screen shows the text."""
        for _ in range(30):
            self.type(keys)
            with suppress(AssertionError):
                self.wait_for(text, 2)
                return
        raise AssertionError(f"no {text!r} in {self.screen!r}")

    def exit_code(self) -> int:
        self.wait_for("")
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def keyboard(demo: Path) -> Iterator[Keyboard]:
    process = Keyboard(*COMMAND, "chat", "--max-tokens", "3000")
    yield process
    os.close(process.terminal)  # hangs up on a process that a failed test left


def test_a_session(keyboard: Keyboard) -> None:
    greeting = keyboard.wait_for("> ")
    assert "load decoder" in greeting
    assert "photographs are beyond it" in " ".join(greeting.split())
    assert "demo (prismatic). Commands: /help /image" in greeting

    keyboard.type("half a line")
    keyboard.wait_for("half a line")
    # Python's line editor takes note of Ctrl-C only while it waits: as a hand does, until it helps.
    keyboard.insist("\x03", "/quit or Ctrl-D leaves.\r\n")
    keyboard.wait_for("> ")

    keyboard.type("Write a very long story about a lighthouse.\n")
    keyboard.wait_for("lighthouse.\r\n")
    keyboard.screen = ""
    keyboard.wait_for(" ")
    keyboard.type("\x03")
    keyboard.wait_for("sightline: the answer was cancelled\r\n")
    keyboard.wait_for("> ")

    keyboard.type("/image nowhere.png\n")
    keyboard.wait_for("sightline: 'nowhere.png' cannot be read")
    keyboard.wait_for("\r\n> ")  # else the next one waited for might be this one
    keyboard.type("stats\x01/\n")  # edited: the stroke goes to the start of the line
    assert "finish reason cancelled" in keyboard.wait_for("prompt cache: 1 conversations")
    keyboard.wait_for("\r\n> ")

    keyboard.type("What is 1+1?\n")
    keyboard.wait_for("\r\n> ")
    keyboard.type("\x04")
    code = keyboard.exit_code()
    assert code == 0, keyboard.screen
    assert "Traceback" not in keyboard.screen


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MLX brings its own BLAS")
def test_advice_about_the_machine_is_for_a_person_at_a_terminal(letters_folder: Path) -> None:
    asked = ["generate", "--model", str(letters_folder), "--prompt", "a", "--max-tokens", "1"]
    script = f"{WITHOUT_OPENBLAS}\nfrom engine.cli import main\nmain({asked})"
    command = python(script)
    piped = subprocess.run(command, capture_output=True, text=True)
    assert "finish reason length" in piped.stderr
    assert "OpenBLAS" not in piped.stderr
    shown = Keyboard(*command).wait_for("")
    assert "sightline: no OpenBLAS on this system" in shown
    assert "install the Debian package libopenblas0-pthread" in " ".join(shown.split())
