"""`sightline generate`: one answer on standard output, and nothing else there."""

import argparse
import json
import sys
from dataclasses import replace
from typing import Any

from engine.cli.answer import as_json, show_answer, summary
from engine.cli.arguments import add_options, given_options, read_pictures, text
from engine.cli.loading import open_engine
from engine.cli.terminal import complain
from model_kit.models import known_model
from vision_add_ons.errors import OptionError


def add_command(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser("generate", help="answer one prompt")
    prompt = (
        "the question; - reads it from standard input (less one final newline); may be left out "
        "about a picture, if `sightline models` lists what to ask the model"
    )
    parser.add_argument("--prompt", type=text, metavar="TEXT", help=prompt)
    raw = "use the prompt as it stands, without a chat template"
    parser.add_argument("--raw", action="store_true", help=raw)
    as_object = "print one JSON object, with the answer and its figures"
    parser.add_argument("--json", action="store_true", help=as_object)
    add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    given = given_options(args)
    if args.raw and args.system is not None:
        raise OptionError("a --raw prompt has no place for --system; write it into the prompt")
    images = [picture for _, picture in read_pictures(args.image)]
    question = _question(args)
    messages = [{"role": "user", "content": question}]
    if args.system is not None:
        messages.insert(0, {"role": "system", "content": args.system})
    prompt = question if args.raw else messages
    out = sys.stdout
    with open_engine(args) as engine:
        options = replace(engine.default_options, **given)
        end = show_answer(
            lambda: engine.generate(prompt, images, options), None if args.json else out
        )
    if args.json:
        print(json.dumps(as_json(end)), file=out, flush=True)
    elif out.isatty():
        print(file=out, flush=True)
    print(summary(end), file=sys.stderr, flush=True)
    if end.error is not None:
        complain(end.error)
        return 1
    return 130 if end.finish_reason == "cancelled" else 0


def _question(args: argparse.Namespace) -> str:
    if args.prompt == "-":
        return sys.stdin.read().removesuffix("\n")
    if args.prompt is not None:
        return str(args.prompt)
    known = known_model(args.model)
    if not args.image or known is None or known.prompt is None:
        raise OptionError("give the question with --prompt; see `sightline generate --help`")
    return known.prompt
