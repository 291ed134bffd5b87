"""`sightline demo`: a short conversation about two pictures, with the figures of each answer."""

import argparse
import sys
from functools import partial
from typing import Any

from engine.cli.answer import show_answer, summary
from engine.cli.loading import open_engine
from engine.cli.terminal import complain, printable
from engine.options import GenerationOptions

TURNS = (
    ("What is in this picture?", "animals.png"),
    ("What is on the left?", None),
    ("What is written here?", "word.png"),
)
MEANING = (
    "The picture was encoded, and read as rows among the prompt's {prompt} tokens.",
    "A question about a picture that was seen costs what a text question costs: no picture was "
    "encoded, and {cached} of {prompt} tokens came from the cache.",
    "A second picture: one more encoded; all that was said before came from the cache.",
)


def add_command(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser("demo", help="watch a short conversation about two pictures")
    parser.set_defaults(
        run=run,
        model="demo",
        decoder_only=False,
        cache_bytes=None,
        memory_bytes=None,
        cache_dir=None,
        adapter=None,
        draft=None,
    )


def run(args: argparse.Namespace) -> int:
    from model_kit.demo_eyes import PARTS

    out = sys.stdout
    with open_engine(args) as engine:
        chat = engine.chat(options=GenerationOptions(max_tokens=40))
        for (question, sample), meaning in zip(TURNS, MEANING, strict=True):
            images = [] if sample is None else [PARTS / "samples" / sample]
            shown = "".join(f"  [{path}]" for path in images)
            print(printable(f"> {question}{shown}", out), flush=True)
            end = show_answer(partial(chat.send, question, images), out)
            if end.error is not None or end.finish_reason == "cancelled":
                complain(end.error or "the answer was cancelled")
                return 1 if end.error is not None else 130
            figures = {"cached": end.cached_tokens, "prompt": end.prompt_tokens}
            print(f"\n  {summary(end)}\n  {meaning.format(**figures)}\n", flush=True)
    print("`sightline chat` is yours: /image FILE attaches a picture to the next message.")
    return 0
