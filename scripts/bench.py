"""Speed and memory of the engine against mlx-lm alone, and of the way from pictures to embeddings
against mlx-vlm's, as ratios measured in one run.

    python scripts/bench.py                       # everything, on the default model
    python scripts/bench.py follow-up --rounds 9 --json figures.json
    python scripts/bench.py together clients first --small
    python scripts/bench.py embeddings --family gemma4 --family lfm2_vl --blocks 4
    python scripts/bench.py --model FOLDER        # another checkpoint

The machines that this runs on are noisy, so both sides of a ratio take turns and the medians are
compared. Each row says what it aims at; the exit status is 1 if a row misses its aim.
"""

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from model_kit.blas import preload_openblas

preload_openblas()


import bench_apc  # noqa: E402
import bench_cache  # noqa: E402
import bench_clients  # noqa: E402
import bench_drafts  # noqa: E402
import bench_first  # noqa: E402
import bench_follow_up  # noqa: E402
import bench_prompts  # noqa: E402
import bench_quantize  # noqa: E402
import bench_server  # noqa: E402
import bench_together  # noqa: E402
import bench_vision  # noqa: E402
import mlx.core as mx  # noqa: E402
from mlx_lm import load as mlx_lm_load  # noqa: E402
from mlx_lm import stream_generate  # noqa: E402
from mlx_lm.sample_utils import make_logits_processors  # noqa: E402

from engine import Engine, GenerationOptions, TextDelta, load  # noqa: E402
from model_kit.demo import demo_folder  # noqa: E402


@dataclass
class Row:
    """One figure: `value` is a ratio or in `unit`, with its extremes over the rounds."""

    name: str
    value: float
    low: float
    high: float
    unit: str
    aim: str
    met: bool
    detail: str
    figures: dict[str, Any] = field(default_factory=dict)
    """What else was found, where that is more than fits a line."""


class Bench:
    def __init__(
        self,
        folder: Path | None,
        rounds: int,
        small: bool = False,
        families: Sequence[str] = bench_vision.NAMES,
        blocks: int | None = None,
    ) -> None:
        """`folder` is a checkpoint's, instead of smollm2's and demo's; `small` asks for less.

        `families` are those of `embeddings`, and `blocks` what of their towers there is; or all.
        """
        self.folder = folder or demo_folder()
        self._seeing = folder
        self.rounds = rounds
        self._small = small
        self._families, self._blocks = families, blocks

    @cached_property
    def engine(self) -> Engine:
        return load(self.folder)

    @cached_property
    def _alone(self) -> Any:
        return mlx_lm_load(str(self.folder))

    @property
    def model(self) -> Any:
        """mlx-lm's own."""
        return self._alone[0]

    @property
    def tokenizer(self) -> Any:
        return self._alone[1]

    @property
    def seeing(self) -> Path:
        """A checkpoint with eyes."""
        return self._seeing or demo_folder(eyes=True)

    @property
    def sizes(self) -> bench_together.Sizes:
        return bench_together.SMALL if self._small else bench_together.usual_sizes()

    def decode(self) -> Iterator[Row]:
        """Tokens per second while decoding, after a short prompt, seen from outside.

        By the median time between two tokens, which a hiccup of the machine does not move.
        """
        prompt = self.engine.tokenize("Once upon a time there was")
        bias = dict.fromkeys(self.tokenizer.eos_token_ids, -100.0)  # all run to the end
        options = GenerationOptions(max_tokens=96, logit_bias=bias)

        def ours() -> float:
            events = self.engine.generate(prompt, options=options)
            return _pace(e for e in events if isinstance(e, TextDelta))

        def theirs() -> float:
            processors = make_logits_processors(logit_bias=bias)
            tokens = mx.array(prompt)
            return _pace(
                stream_generate(
                    self.model,
                    self.tokenizer,
                    tokens,
                    max_tokens=96,
                    logits_processors=processors,
                )
            )

        a, b = self._take_turns(ours, theirs)
        ratios = [x / y for x, y in zip(a, b, strict=True)]
        detail = f"{statistics.median(a):.1f} against {statistics.median(b):.1f} tokens/s"
        yield self._row("decode, engine / mlx-lm", ratios, "ratio", at_least=0.97, detail=detail)

    def follow_up(self) -> Iterator[Row]:
        """The first token of a question after 2,000 tokens of conversation."""
        args = self.engine, self.model, self.tokenizer, self.rounds
        found = list(bench_follow_up.follow_ups(*args))
        warm, alone, cold, growth, held = map(statistics.median, zip(*found, strict=True))
        detail = f"{warm:.3f} s against {alone:.3f} s"
        ratios = [f.warm / f.alone for f in found]
        yield self._row("follow-up, engine / mlx-lm", ratios, "ratio", at_most=1.10, detail=detail)
        detail = f"{cold:.2f} s against {warm:.3f} s"
        gains = [f.cold / f.warm for f in found]
        yield self._row("cold / follow-up", gains, "ratio", at_least=25, detail=detail)
        detail = f"{growth / 2**20:.1f} MiB over a history of {held / 2**20:.1f} MiB"
        shares = [f.growth / f.held for f in found]
        yield self._row("peak memory / history", shares, "ratio", at_most=0.5, detail=detail)

    def drafts(self) -> Iterator[Row]:
        """Answers guessed ahead: what that gains where it is right, and costs where it is not."""
        yield from self._at_least(bench_drafts.figures(self.folder, self.rounds))

    def imports(self) -> Iterator[Row]:
        """`import engine` in a fresh interpreter."""
        code = "import time; t = time.perf_counter(); import engine; print(time.perf_counter() - t)"
        seconds = [float(_python(code)) for _ in range(self.rounds)]
        yield self._row("import engine", seconds, "s", at_most=0.2, detail="a fresh interpreter")

    def loads(self) -> Iterator[Row]:
        """From a fresh interpreter to a loaded model."""
        timed = "import sys, time; t = time.perf_counter()\n{}\nprint(time.perf_counter() - t)"
        ours = timed.format(
            f"from engine import load; e = load({str(self.folder)!r})\n"
            "assert 'mlx_vlm' not in sys.modules"
        )
        theirs = timed.format(f"from mlx_lm import load; m = load({str(self.folder)!r})")
        a, b = self._take_turns(lambda: float(_python(ours)), lambda: float(_python(theirs)))
        ratios = [x / y for x, y in zip(a, b, strict=True)]
        detail = f"{statistics.median(a):.2f} s against {statistics.median(b):.2f} s, no mlx_vlm"
        yield self._row("load, engine / mlx-lm", ratios, "ratio", at_most=1.15, detail=detail)

    def embeddings(self) -> Iterator[Row]:
        """From a photograph to `input_embeddings`, for every family."""
        for name, ours, theirs in bench_vision.rows(self._families, self.rounds, self._blocks):
            ratios = [x / y for x, y in zip(ours, theirs, strict=True)]
            a, b = statistics.median(ours), statistics.median(theirs)
            detail = f"{a * 1000:.1f} ms against {b * 1000:.1f} ms"
            yield self._row(name, ratios, "ratio", at_most=1.0, detail=detail)

    def prompts(self) -> Iterator[Row]:
        """What a follow-up's prompt takes: its template, its tokens and their bookkeeping."""
        for found in bench_prompts.follow_ups(self.folder, 3 * self.rounds):
            sizes = reversed(bench_prompts.BARS.items())
            bar = next(bar for size, bar in sizes if found.tokens >= size)
            alone = statistics.median(found.whole)
            detail = f"{found.messages} messages, {alone:.0f} ms for mlx-lm's tokenizer alone"
            name = f"prompt after {found.tokens:,} tokens"
            yield self._row(name, found.ours, "ms", at_most=bar, detail=detail)

    def together(self) -> Iterator[Row]:
        """1 to 16 answers at once, texts and then half of them about pictures, against mlx-lm's."""
        yield from self._at_least(bench_together.lone(self.folder, 2 * self.rounds, self.sizes))
        folders = self.folder, self.seeing
        yield from self._at_least(bench_together.figures(*folders, self.rounds, self.sizes))

    def clients(self) -> Iterator[Row]:
        """As many clients of the server as answers, against the engine's own route."""
        yield from self._at_least(bench_clients.figures(self.seeing, self.rounds, self.sizes))

    def _at_least(self, found: Iterable[bench_together.Figure]) -> Iterator[Row]:
        for name, ratios, bar, detail, more in found:
            row = self._row(name, ratios, "ratio", at_least=bar, detail=detail)
            yield replace(row, figures=more)

    def first(self) -> Iterator[Row]:
        """The first token of a follow-up after histories of several lengths."""
        histories = bench_first.HISTORIES[: 1 if self._small else None]
        rounds = self.rounds if self._small else max(7, self.rounds)
        for name, ratios, detail, more in bench_first.figures(self.folder, rounds, histories):
            row = self._row(name, ratios, "ratio", at_most=bench_first.BAR, detail=detail)
            yield replace(row, figures=more)

    def pictures(self) -> Iterator[Row]:
        """A follow-up with a picture in its history, and the search for a conversation."""
        found = list(bench_cache.seeing_follow_ups(self.folder, self.rounds))
        assert not any(f["encoded"] for f in found)
        ratios = [f["picture"] / f["text"] for f in found]
        a, b = (statistics.median(f[name] for f in found) for name in ("picture", "text"))
        detail = f"{a:.3f} s against {b:.3f} s, no picture encoded"
        yield self._row("follow-up, picture / text", ratios, "ratio", at_most=1.05, detail=detail)
        cold = [f["cold"] for f in found[:2]]
        gains = [f["cold"] / f["picture"] for f in found[:2]]
        detail = f"{statistics.median(cold):.2f} s against {a:.3f} s"
        yield self._row("cold / follow-up, picture", gains, "ratio", at_least=25, detail=detail)
        found_in = bench_cache.lookups(10 * self.rounds)
        one, thousand, longer = found_in.values()
        for name, slow, fast, limit in (
            ("search, 1,000 / 1 stored", thousand, one, 1.5),
            ("search, 8,000 / 2,000 tokens", longer, thousand, 5),
        ):
            ratios = [x / y for x, y in zip(slow, fast, strict=True)]
            a, b = statistics.median(slow), statistics.median(fast)
            detail = f"{a * 1e6:.0f} us against {b * 1e6:.0f} us"
            yield self._row(name, ratios, "ratio", at_most=limit, detail=detail)

    def saved(self) -> Iterator[Row]:
        """A follow-up to a conversation that was read from a file."""
        found = list(bench_cache.restored(self.folder, self.rounds))
        ratios = [f["restored"] / f["cold"] for f in found]
        a, b = (statistics.median(f[name] for f in found) for name in ("restored", "cold"))
        detail = f"{a:.3f} s against {b:.2f} s, {found[0]['bytes'] / 2**20:.0f} MiB read"
        yield self._row("restored / cold", ratios, "ratio", at_most=0.10, detail=detail)

    def peak(self) -> Iterator[Row]:
        """Memory of a follow-up after 4,000 tokens, beside the weights, over the cache's own."""
        found = list(bench_follow_up.peaks(self.folder, self.rounds))
        held, _, tokens = found[-1]
        shares = [(held + growth) / held for held, growth, _ in found]
        detail = f"{held / 2**20:.0f} MiB held for {tokens} tokens"
        yield self._row("peak / cache", shares, "ratio", at_most=1.10, detail=detail)

    def apc(self) -> Iterator[Row]:
        """Follow-ups with a picture against mlx-vlm's automatic prefix cache."""
        rows = list(bench_apc.apc_follow_ups(self.rounds))
        for family in dict.fromkeys(row["family"] for row in rows):
            own = [row for row in rows if row["family"] == family]
            ratios = [row["ours"] / row["theirs"] for row in own]
            a, b = (statistics.median(row[side] for row in own) for side in ("ours", "theirs"))
            run = [
                statistics.median(row[f"{side}_run"] for row in own) for side in ("ours", "theirs")
            ]
            detail = f"{a:.3f} s against {b:.3f} s, {run[0]:.0f} and {run[1]:.0f} tokens run"
            yield self._row(f"{family} / mlx-vlm", ratios, "ratio", at_most=1.0, detail=detail)

    def quantize(self) -> Iterator[Row]:
        """Quantizing a checkpoint of 1 GB against mlx-lm's converter."""
        found = list(bench_quantize.conversions(self.folder, self.rounds))
        for what, unit, scale in (("seconds", "s", 1.0), ("memory", "GB", 1e9)):
            a, b = ([row[side][what] / scale for row in found] for side in ("ours", "theirs"))
            ratios = [x / y for x, y in zip(a, b, strict=True)]
            detail = f"{statistics.median(a):.2f} {unit} against {statistics.median(b):.2f} {unit}"
            name = f"quantize / mlx-lm, {what}"
            yield self._row(name, ratios, "ratio", at_most=1.1, detail=detail)
        shares = [row["ours"]["memory"] / row["bound"]["memory"] for row in found]
        arrays = statistics.median(row["ours"]["arrays"] for row in found)
        detail = f"bound {found[0]['bound']['memory'] / 1e9:.2f} GB, arrays {arrays / 1e9:.2f} GB"
        yield self._row("quantize, peak / bound", shares, "ratio", at_most=1.3, detail=detail)

    def server(self) -> Iterator[Row]:
        """How much later than a thread of this process a client reads a token by HTTP."""
        found = list(bench_server.rows(self.engine, self.rounds))
        added = [(f["through"] - f["alone"]) * 1000 for f in found]
        a, b = (statistics.median(f[side] for f in found) * 1000 for side in ("through", "alone"))
        detail = f"read {a:.2f} ms after it was made, against {b:.2f} ms in the same process"
        yield self._row("server, added a token", added, "ms", at_most=1.0, detail=detail)

    def _take_turns(
        self, ours: Callable[[], float], theirs: Callable[[], float]
    ) -> tuple[list[float], list[float]]:
        ours(), theirs()  # warm up
        a: list[float] = []
        b: list[float] = []
        for i in range(self.rounds):
            for measure, found in ((ours, a), (theirs, b))[:: 1 if i % 2 else -1]:
                found.append(measure())
        return a, b

    def _row(
        self,
        name: str,
        values: list[float],
        unit: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        detail: str,
    ) -> Row:
        value = statistics.median(values)
        aim = f">= {at_least:g}" if at_least is not None else f"<= {at_most:g}"
        met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
        return Row(name, value, min(values), max(values), unit, aim, met, detail)


def _pace(tokens: Iterable[Any]) -> float:
    """Tokens per second, by the median time from one token to the next."""
    times = [time.perf_counter() for _ in tokens]
    return 1 / statistics.median(b - a for a, b in itertools.pairwise(times))


def _python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip().splitlines()[-1]


PARTS = {
    "decode": Bench.decode,
    "follow-up": Bench.follow_up,
    "import": Bench.imports,
    "load": Bench.loads,
    "first": Bench.first,
    "drafts": Bench.drafts,
    "together": Bench.together,
    "clients": Bench.clients,
    "embeddings": Bench.embeddings,
    "prompts": Bench.prompts,
    "pictures": Bench.pictures,
    "saved": Bench.saved,
    "peak": Bench.peak,
    "apc": Bench.apc,
    "quantize": Bench.quantize,
    "server": Bench.server,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--model", type=Path, help="a checkpoint folder (default: smollm2, demo)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="few answers, and short ones")
    parser.add_argument(
        "--family", action="append", choices=bench_vision.NAMES, help="of embeddings (default: all)"
    )
    parser.add_argument("--blocks", type=int, help="of a tower in embeddings (default: all)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown or args.rounds < 1:
        parser.error(f"unknown part {', '.join(unknown)}" if unknown else "--rounds must be > 0")
    families = args.family or bench_vision.NAMES
    bench = Bench(args.model, args.rounds, args.small, families, args.blocks)
    where = f"{platform.platform()}, {mx.default_device()}, {args.rounds} rounds"
    print(f"{where}\n{'':34}{'median':>9}{'low':>9}{'high':>9}  {'aim':9} ")
    rows = []
    for part in args.parts or PARTS:
        for row in PARTS[part](bench):
            rows.append(row)
            unit = "" if row.unit == "ratio" else f" {row.unit}"
            verdict = "met" if row.met else "MISSED"
            print(
                f"{row.name:34}{row.value:9.3f}{row.low:9.3f}{row.high:9.3f}{unit}  "
                f"{row.aim:9} {verdict:7} {row.detail}",
                flush=True,
            )
    if args.json:
        figures = {"where": where, "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    if "engine" in vars(bench):
        bench.engine.close()
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
