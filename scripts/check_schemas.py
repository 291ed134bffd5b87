"""Thousands of random schemas, patterns and lists of choices, each answered by a random model.

    python scripts/check_schemas.py --schemas 2000 --pictures 200 --tools 200 [--seed N]

Answers are drawn at temperature 1, eight at once, half of them with a model that does not want to
end; those of the second number are about pictures, and those of the third are calls of a tool, in
each form that calls are held to, which the model begins of its own accord. What ended by itself
must be what was asked for, by `jsonschema` and by Python's `re`; what cannot be had must be refused
when it is asked for.
Needs the extras `dev` and `parity`.
"""

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from model_kit.blas import preload_openblas  # noqa: E402

preload_openblas()

import hypothesis  # noqa: E402
import jsonschema  # noqa: E402
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from PIL import Image  # noqa: E402
from support import scripted, tiny  # noqa: E402
from support.moxin_checkpoint import write_seeing  # noqa: E402
from support.random_schemas import CHOICES, PATTERNS, SCHEMAS  # noqa: E402
from support.tool_templates import PUBLISHED  # noqa: E402

from engine import Engine, GenerationOptions, OptionError, Request, Schema, load  # noqa: E402
from model_kit.demo import demo_folder  # noqa: E402

TOGETHER = 8
TOKENS = 160
CLOSING = (0.0, 6.0, 9.0)
"""How much likelier what closes a part of JSON is made: of so many words it would rarely be
drawn."""

VALIDATOR = jsonschema.Draft202012Validator

Asked = tuple[str, Any]
"""A kind (schema, pattern or choices), and what of it."""


def drawn(count: int, seed: int) -> list[Asked]:
    """So many, of which one in ten is a pattern, and one in ten a list of choices."""
    kinds: dict[int, st.SearchStrategy[Any]] = {
        **dict.fromkeys(range(8), st.tuples(st.just("schema"), SCHEMAS)),
        8: st.tuples(st.just("pattern"), PATTERNS),
        9: st.tuples(st.just("choices"), CHOICES),
    }
    found: list[Asked] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(asked=st.sampled_from(range(10)).flatmap(kinds.__getitem__))
    def draw(asked: Asked) -> None:
        found.append(asked)

    draw()
    return found


def failure(asked: Asked, answer: str) -> str | None:
    """What is wrong with an answer that ended by itself."""
    kind, wanted = asked
    if kind == "choices":
        return None if answer in wanted else "none of the choices"
    if kind == "pattern":
        return None if re.fullmatch(wanted, answer) else "not matched"
    try:
        checker = VALIDATOR.FORMAT_CHECKER
        VALIDATOR(wanted, format_checker=checker).validate(json.loads(answer))
    except (ValueError, jsonschema.ValidationError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return None


def schema_of(asked: Asked) -> Any:
    return Schema.regex(asked[1]) if asked[0] == "pattern" else asked[1]


def batches(
    engine: Engine, asked: Sequence[Asked], chance: random.Random, pictures: bool
) -> tuple[Counter[str], Counter[str], int]:
    """What became of each, why some were refused, and how many failed."""
    outcomes: Counter[str] = Counter()
    refusals: Counter[str] = Counter()
    failures = 0
    closing = [token for text in '"}]' for token in engine.tokenize(text)]
    ends = dict.fromkeys(engine._guides.ends, -100.0) if engine._guides else {}
    for start in range(0, len(asked), TOGETHER):
        under_way = []
        for one in asked[start : start + TOGETHER]:
            bias = dict.fromkeys(closing, chance.choice(CLOSING))
            options = GenerationOptions(
                schema=schema_of(one),
                max_tokens=TOKENS,
                temperature=1.0,
                seed=chance.randrange(2**32),
                logit_bias=bias | (ends if chance.random() < 0.5 else {}),
            )
            shown = [_picture(chance) for _ in range(chance.randint(1, 2) if pictures else 0)]
            try:
                under_way.append((one, engine.generate("Hello", shown, options)))
            except OptionError as error:
                outcomes[f"{one[0]} refused"] += 1
                refusals[_why(error)] += 1
        for one, generation in under_way:
            try:
                end = generation.result()
            except OptionError as error:
                wrong: str | None = f"refused half-way: {error}"
            else:
                ended = end.finish_reason == "stop"
                outcomes[f"{one[0]} {'met' if ended else 'cut off'}"] += 1
                wrong = failure(one, end.answer) if ended else None
            if wrong is not None:
                failures += 1
                print(f"FAILURE {one!r}\n    {wrong}", flush=True)
                print(f"    {generation.result().answer!r}, {generation.options!r}\n", flush=True)
    return outcomes, refusals, failures


def calls(
    engine: Engine, schemas: Sequence[Any], chance: random.Random
) -> tuple[Counter[str], int]:
    """What became of calls with such arguments, and how many failed."""
    outcomes: Counter[str] = Counter()
    failures = 0
    builder = engine._builder()
    closing = {token: 6.0 for text in '"}]<>' for token in engine.tokenize(text)}
    bias = closing | {builder.token_of(builder.telling.form.start): 100.0}
    for start in range(0, len(schemas), TOGETHER):
        under_way = []
        for schema in schemas[start : start + TOGETHER]:
            tool = {"name": "f", "description": "Does it.", "parameters": _parameters(schema)}
            options = GenerationOptions(
                max_tokens=2 * TOKENS,
                temperature=1.0,
                seed=chance.randrange(2**32),
                logit_bias=bias,
            )
            messages = [{"role": "user", "content": "Hello"}]
            asked = Request(messages, options=options, tools=[tool], parallel_tool_calls=False)
            under_way.append((tool["parameters"], engine.submit(asked)))
        for parameters, generation in under_way:
            end = generation.result()
            if generation.guide is None:
                outcomes["not held to"] += 1  # what nothing can meet
            elif end.finish_reason == "length":
                outcomes["cut off"] += 1
            else:
                made = [dict(call.arguments) for call in end.tool_calls]
                wrong = failure(("schema", parameters), json.dumps(made[0])) if made else "no call"
                outcomes["failed" if wrong else "met"] += 1
                if wrong is not None:
                    failures += 1
                    print(f"FAILURE {parameters!r}\n    {wrong}\n    {end.answer!r} {made!r}\n")
    return outcomes, failures


def _parameters(schema: Any) -> dict[str, Any]:
    """A tool's, of which one is to be as a schema says."""
    own = dict(schema)
    named = {"$defs": own.pop("$defs")} if "$defs" in own else {}
    properties = {"given": own, "rest": {"anyOf": [{"type": "boolean"}, {"type": "null"}]}}
    return {"type": "object", "properties": properties, "required": ["given"], **named}


def _picture(chance: random.Random) -> Image.Image:
    size = chance.randint(20, 60), chance.randint(20, 60)
    return Image.frombytes("RGB", size, chance.randbytes(size[0] * size[1] * 3))


def _why(error: OptionError) -> str:
    """Without what was its own."""
    return re.sub(r"[-\d.]+", "N", re.sub(r"[/\"'(].*", "...", str(error)))[:80]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schemas", type=int, default=2000)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--tools", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    chance = random.Random(args.seed)
    failures = 0
    with tempfile.TemporaryDirectory() as directory:
        text = tiny.save(tiny.text_model(args.seed), Path(directory) / "text", demo_folder())
        seeing = write_seeing(Path(directory) / "seeing", text, args.seed)
        for folder, count, pictures in (
            (text, args.schemas, False),
            (seeing, args.pictures, True),
        ):
            if not count:
                continue
            started = time.perf_counter()
            asked = drawn(count, chance.randrange(2**32))
            with load(folder, parallel=TOGETHER) as engine:
                outcomes, refusals, failed = batches(engine, asked, chance, pictures)
            failures += failed
            seconds = time.perf_counter() - started
            print(f"{len(asked)} {'with pictures' if pictures else 'texts'} in {seconds:.0f} s")
            for title, counts in (("outcome", outcomes), ("refused", refusals)):
                print(f"by {title}:", "; ".join(f"{n} {what}" for what, n in counts.most_common()))
        asked = drawn(args.tools * 5 // 4, chance.randrange(2**32)) if args.tools else []
        schemas = [schema for kind, schema in asked if kind == "schema"][: args.tools]
        for family in ("mistral", "qwen3", "qwen3_coder") if schemas else ():
            form, marks = PUBLISHED[family], ("<pad>", *PUBLISHED[family].added)
            folder = Path(directory) / family
            scripted.save(
                folder,
                form.template,
                None,
                added=marks,
                end=form.added[1],
                max_position_embeddings=2**14,
            )
            with load(folder, parallel=TOGETHER) as engine:
                counts, failed = calls(engine, schemas, chance)
            failures += failed
            print(f"{family}:", "; ".join(f"{n} {what}" for what, n in counts.most_common()))
    print(f"{failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
