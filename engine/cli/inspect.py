"""`sightline inspect` and `sightline add-ons`: what is there, without an answer."""

import argparse
import sys
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

from engine.cli.terminal import Bar, printable


def add_commands(commands: "argparse._SubParsersAction[Any]") -> None:
    about = "tell what a checkpoint is, and what loading it takes"
    parser = commands.add_parser("inspect", help=about)
    parser.add_argument("folder", metavar="FOLDER", help="folder of a checkpoint, or demo")
    parser.set_defaults(run=inspect)
    about = "list the model types that see, and the add-on that serves each"
    commands.add_parser("add-ons", help=about).set_defaults(run=add_ons)


def inspect(args: argparse.Namespace) -> int:
    folder, out = Path(args.folder), sys.stdout
    with redirect_stdout(sys.stderr), closing(Bar()) as bar:
        if args.folder == "demo":
            from model_kit.demo import demo_folder

            folder = demo_folder(bar)
        from model_kit import inspect_checkpoint

        lines = inspect_checkpoint(folder).lines()
    print(printable("\n".join(lines), out))
    return 0


def add_ons(_: argparse.Namespace) -> int:
    from vision_add_ons.registry import registered

    rows = sorted(registered().items())
    width = max(len(model_type) for model_type, _ in rows)
    for model_type, add_on in rows:
        print(f"{model_type:{width}}  {add_on}")
    return 0
