"""Loading a model for a command, with bars, and with Ctrl-C that leaves nothing half done."""

import argparse
import os
import sys
import threading
from contextlib import closing, redirect_stdout

from engine.cli.terminal import Bar
from engine.engine import Engine
from engine.loading import load

CLEAN_UP_SECONDS = 5.0


def open_engine(args: argparse.Namespace, parallel: int = 1) -> Engine:
    """Load the model that the options name. Ctrl-C ends the process with code 130.

    Raises a subclass of `SightlineError`.
    """
    loader: threading.Thread | None = None
    stopped = threading.Event()

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal loader
        loader = threading.current_thread()
        if stopped.is_set():
            raise KeyboardInterrupt  # ends a set-up under way, which then removes what it made
        bar(stage, done, total)

    with closing(Bar()) as bar, redirect_stdout(sys.stderr):
        try:
            return load(
                args.model,
                progress=progress,
                decoder_only=args.decoder_only,
                cache_bytes=args.cache_bytes,
                memory_bytes=args.memory_bytes,
                cache_dir=args.cache_dir,
                adapter=args.adapter,
                parallel=parallel,
                draft=args.draft,
            )
        except KeyboardInterrupt:
            stopped.set()
            if loader is not None:
                loader.join(CLEAN_UP_SECONDS)
    # Not by way of Python's tidy end, which a thread busy loading a library may crash.
    os._exit(130)
