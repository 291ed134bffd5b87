"""`sightline quantize`, `convert` and `fuse`: a checkpoint becomes another one."""

import argparse
import sys
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from engine.cli.arguments import MODEL, read_pictures, text
from engine.cli.terminal import Bar, printable
from vision_add_ons.errors import OptionError


def add_commands(commands: "argparse._SubParsersAction[Any]") -> None:
    add = _command(
        commands, "quantize", quantize, "make a checkpoint smaller, in few bits"
    ).add_argument
    add("--bits", type=int, metavar="N", help="bits of the decoder's linear layers (default 4)")
    add("--group-size", type=int, metavar="N", help="values that share a scale (default 64)")
    modes = "affine (default), mxfp4, nvfp4 or mxfp8"
    add("--mode", default="affine", metavar="MODE", help=modes)
    add("--towers-bits", type=int, metavar="N", help="quantize towers and projector too")
    add("--embeddings", action="store_true", help="quantize the decoder's embeddings too")
    add("--decoder-only", action="store_true", help="make a text checkpoint of the text half")
    add("--report", action="store_true", help="compare the answers with the source's")
    add(
        "--text",
        action="append",
        type=text,
        metavar="TEXT",
        help="compare on this text; again for more",
    )
    add("--image", action="append", metavar="FILE", help="compare on this picture; again for more")
    add("--plot", metavar="FILE", help="draw the comparison into a picture")

    add = _command(
        commands,
        "convert",
        convert,
        "write a checkpoint in another precision, or by its published names",
    ).add_argument
    add("--dtype", metavar="TYPE", help="float32, bfloat16 or float16 (default: as it is)")

    parser = _command(
        commands, "fuse", fuse, "make a low-rank adapter part of a checkpoint", "adapter"
    )
    parser.add_argument("--dequantize", action="store_true", help="leave the decoder unquantized")


def _command(
    commands: "argparse._SubParsersAction[Any]", name: str, run: Any, about: str, *between: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=about)
    parser.add_argument("source", metavar="SOURCE", help=MODEL)
    for extra in between:
        parser.add_argument(extra, metavar=extra.upper(), help=f"the folder of an {extra}")
    parser.add_argument("target", metavar="TARGET", help="the folder to make")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a checkpoint that is there"
    )
    parser.set_defaults(run=run)
    return parser


def quantize(args: argparse.Namespace) -> int:
    compared = args.report or args.plot
    if not compared and (args.text or args.image):
        raise OptionError("--text and --image say what to compare; give --report with them")
    # What the comparison needs, before hours of work.
    read_pictures(args.image or ())
    if args.plot:
        from engine.fidelity import check_plot

        check_plot(Path(args.plot))
    out = sys.stdout
    with redirect_stdout(sys.stderr), closing(Bar()) as bar:
        folder = _source(args, bar)
        from model_kit import quantize

        made = quantize(
            folder,
            args.target,
            bits=args.bits,
            group_size=args.group_size,
            mode=args.mode,
            towers_bits=args.towers_bits,
            embeddings=args.embeddings,
            decoder_only=args.decoder_only,
            overwrite=args.overwrite,
            progress=bar,
        )
        for name in made.left:
            _tell(f"not quantized, too narrow for the groups: {name}", out)
        told = f"{made.layers} layers quantized, {made.nbytes / 1e6:.0f} MB"
        _tell(f"{made.folder}: {told} instead of {made.source_nbytes / 1e6:.0f} MB", out)
        if compared:
            from engine.fidelity import compare, plot

            # Who gives one kind wants to compare on that alone.
            texts = args.text or (() if args.image else None)
            pictures = args.image or (() if args.text else None)
            fidelity = compare(folder, made.folder, texts, pictures, bar)
            _tell("\n".join(fidelity.lines()), out)
            if args.plot:
                plot(fidelity, Path(args.plot))
    return 0


def convert(args: argparse.Namespace) -> int:
    with redirect_stdout(sys.stderr), closing(Bar()) as bar:
        folder = _source(args, bar)
        from model_kit import convert

        nbytes = convert(
            folder, args.target, dtype=args.dtype, overwrite=args.overwrite, progress=bar
        )
    return _told(args.target, nbytes)


def fuse(args: argparse.Namespace) -> int:
    with redirect_stdout(sys.stderr), closing(Bar()) as bar:
        folder = _source(args, bar)
        from model_kit import fuse

        nbytes = fuse(
            folder,
            args.adapter,
            args.target,
            dequantize=args.dequantize,
            overwrite=args.overwrite,
            progress=bar,
        )
    return _told(args.target, nbytes)


def _tell(text: str, out: TextIO) -> None:
    print(printable(text, out), file=out, flush=True)


def _source(args: argparse.Namespace, bar: Bar) -> Path:
    from model_kit.hub import resolve

    return resolve(args.source, bar)


def _told(target: str, nbytes: int) -> int:
    print(printable(f"{target}: {nbytes / 1e6:.0f} MB", sys.stdout))
    return 0
