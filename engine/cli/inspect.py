"""`sightline inspect` and `sightline add-ons`: what is there, without an answer."""

import argparse
import sys
from contextlib import closing, redirect_stdout
from typing import Any

from engine.cli.arguments import MODEL
from engine.cli.terminal import Bar, printable


def add_commands(commands: "argparse._SubParsersAction[Any]") -> None:
    about = "tell what a checkpoint is, and what loading it takes"
    parser = commands.add_parser("inspect", help=about)
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    alone = "look at a vision model's text half alone"
    parser.add_argument("--decoder-only", action="store_true", help=alone)
    parser.set_defaults(run=inspect)
    about = "list the model types that see, and the add-on that serves each"
    commands.add_parser("add-ons", help=about).set_defaults(run=add_ons)


def inspect(args: argparse.Namespace) -> int:
    out = sys.stdout
    with redirect_stdout(sys.stderr), closing(Bar()) as bar:
        from model_kit.hub import resolve

        folder = resolve(args.model, bar)
        # Imports MLX, before which the demo loads OpenBLAS.
        from engine.prompts.builder import PromptBuilder
        from model_kit.kit import open_model_kit

        kit = open_model_kit(folder, decoder_only=args.decoder_only)
        prompts = PromptBuilder(kit)
        kit.report.tools, kit.report.thoughts = prompts.telling.about, prompts.thoughts
        lines = kit.report.lines()
    print(printable("\n".join(lines), out))
    return 0


def add_ons(_: argparse.Namespace) -> int:
    from vision_add_ons.registry import registered

    rows = sorted(registered().items())
    width = max(len(model_type) for model_type, _ in rows)
    for model_type, add_on in rows:
        print(f"{model_type:{width}}  {add_on}")
    return 0
