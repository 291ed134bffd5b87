"""`sightline models`: the models that have a short name."""

import argparse
import json
from dataclasses import asdict
from typing import Any

from model_kit.models import KNOWN_MODELS


def add_command(commands: "argparse._SubParsersAction[Any]") -> None:
    about = "list the models that have a short name, and which are downloaded already"
    parser = commands.add_parser("models", help=about)
    parser.add_argument("--json", action="store_true", help="print a JSON array of objects")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from model_kit.hub import is_downloaded

    models = [(known, is_downloaded(known)) for known in KNOWN_MODELS.values()]
    if args.json:
        print(json.dumps([{**asdict(known), "downloaded": there} for known, there in models]))
        return 0
    rows = [("name", "downloaded", "what it is", "default prompt", "checkpoint")]
    for known, there in models:
        yes = "yes" if there else "no"
        rows.append((known.name, yes, known.about, known.prompt or "", known.checkpoint or ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    return 0
