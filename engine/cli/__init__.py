"""The command `sightline`: chat with a model, ask it once, or see what there is to load.

The model's words go to standard output, and with `generate` nothing else does; bars, warnings and
errors go to standard error. Exit codes: 0; 1 if an answer ended with an error; 2 for what the user
can put right; 130 after Ctrl-C; 141 if the reader of the output went away.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from engine.cli import chat, checkpoints, demo, generate, inspect, models, new_add_on, serve
from engine.cli.terminal import complain, warnings_in_one_line
from vision_add_ons.errors import OptionError, SightlineError

INTERRUPTED, PIPE_CLOSED = 128 + 2, 128 + 13  # as shells report SIGINT and SIGPIPE


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `--help` leaves by SystemExit."""
    # Noise of libraries that load later. This is a program: its environment is its own.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _open_closed_streams()
    for stream in (sys.stdin, sys.stdout):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        with warnings_in_one_line():
            code = _run(argv)
        sys.stdout.flush()
        return code
    except SightlineError as error:
        complain(error)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes standard output once more when it exits, and would complain there.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        # Standard output on a full disk, a working folder that is gone: not ours to explain.
        with suppress(OSError):
            complain(error)
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2


def _open_closed_streams() -> None:
    """Give a process that was started without one its standard input, output or error.

    Else the first files that it opens take their numbers.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 - for the process's life
            if stream.fileno() != number:
                os.dup2(stream.fileno(), number)
            setattr(sys, name, stream)


def _run(argv: Sequence[str] | None) -> int:
    about = "Chat with language models on MLX, and show them pictures."
    parser = _Parser(prog="sightline", description=about)
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(metavar="COMMAND")
    chat.add_command(commands)
    generate.add_command(commands)
    demo.add_command(commands)
    inspect.add_commands(commands)
    models.add_command(commands)
    checkpoints.add_commands(commands)
    serve.add_command(commands)
    new_add_on.add_command(commands)
    args = parser.parse_args(argv)
    if args.version:
        from importlib.metadata import version

        print("sightline", version("sightline"))
        return 0
    if args.run is None:
        parser.print_help(sys.stderr)
        return 2
    code: int = args.run(args)
    return code
