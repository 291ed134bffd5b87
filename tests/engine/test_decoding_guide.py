"""Answers that are held to a schema: whatever the model would rather say."""

import json
import math
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from PIL import Image
from support.at_once import all_at_once
from support.random_schemas import SCHEMAS

from engine import Engine, Finished, GenerationOptions, OptionError, Schema, TextDelta, load
from engine.decoding import guide
from engine.decoding.guide import KEPT, Guides

BOB = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 9},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
CHECKER = jsonschema.Draft202012Validator.FORMAT_CHECKER


def options(schema: Any, seed: int | None = None, **more: Any) -> GenerationOptions:
    """Drawn by a seed, if there is one."""
    given = {"max_tokens": 200, "temperature": float(seed is not None), "seed": seed, **more}
    return GenerationOptions(schema=schema, **given)


def holds(schema: dict[str, Any], end: Finished) -> bool:
    """Whether an answer that ended by itself is what it has to be."""
    if end.finish_reason != "stop":
        assert end.finish_reason == "length"
        return False
    jsonschema.validate(
        json.loads(end.answer),
        schema,
        cls=jsonschema.Draft202012Validator,
        format_checker=CHECKER,
    )
    return True


@pytest.fixture(scope="module", params=[1, 4], ids=["alone", "parallel"])
def engine(letters_folder: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Its tokens are letters."""
    with load(letters_folder, parallel=request.param) as engine:
        yield engine


@pytest.fixture(scope="module", params=[1, 4], ids=["alone", "parallel"])
def tiny(tiny_folder: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Its tokens are the demo's."""
    with load(tiny_folder, parallel=request.param) as engine:
        yield engine


def test_objects(tiny: Engine) -> None:
    asked = [tiny.generate("Bob", options=options(BOB, seed)) for seed in range(6)]
    ends = [generation.result() for generation in asked]
    assert sum(holds(BOB, end) for end in ends) >= 4
    assert len({end.answer for end in ends}) == 6


def test_texts(engine: Engine) -> None:
    for schema, pattern in (
        (Schema.regex(r"\d{3}-\d{4}"), r"\d{3}-\d{4}"),
        (Schema.grammar('start: "<" /[a-z]{2,5}/ ">" start?'), r"(<[a-z]{2,5}>)+"),
        (["yes", "no", 'not "yet"'], 'yes|no|not "yet"'),
    ):
        for seed in (None, 1, 2):
            end = engine.generate("Hello", options=options(schema, seed)).result()
            assert end.finish_reason in ("stop", "length")
            if end.finish_reason == "stop":
                assert re.fullmatch(pattern, end.answer)


@pytest.fixture(scope="module")
def words(tiny_folder: Path) -> Iterator[Engine]:
    """Its tokens are the demo's."""
    with load(tiny_folder) as engine:
        yield engine


@settings(max_examples=12)
@given(schema=SCHEMAS)
def test_any_schema(words: Engine, schema: dict[str, Any]) -> None:
    """Each is met, or refused when it is asked; `scripts/check_schemas.py` has thousands."""
    closing = {token: 9.0 for text in '"}]' for token in words.tokenize(text)}
    bounded = options(schema, 1, max_tokens=60, logit_bias=closing)
    try:
        asked = words.generate("Hello", options=bounded)
    except OptionError as refusal:
        refused = str(refusal)
    else:
        holds(schema, asked.result())
        return
    assert refused.startswith("schema: ")


def test_a_space_at_the_beginning(tiny: Engine) -> None:
    """Which detokenizers drop."""
    for schema, answers in (
        (Schema.regex(" {2}b"), ["  b"]),
        (Schema.regex(" "), [" "]),
        ([" \n\u00e9", "  a"], [" \n\u00e9", "  a"]),
        (["a b"], ["a b"]),
    ):
        for seed in range(3):
            asked = tiny.generate("Hello", options=options(schema, seed))
            told = "".join(event.text for event in asked if isinstance(event, TextDelta))
            assert told in answers
            assert asked.result().answer == told


def test_each_is_what_it_is_alone(letters_folder: Path) -> None:
    """With others that are held to something else, and to nothing."""
    schemas = [BOB, None, ["red", "green"], Schema.regex("[ab]{30}c"), None, BOB, BOB, ["x"]]
    given = [
        options(s, i, max_tokens=40 if i % 2 else 60, logprobs=True, top_logprobs=3)
        for i, s in enumerate(schemas)
    ]
    with load(letters_folder) as engine:
        alone = [engine.generate("Hello", options=o).result() for o in given]
    with load(letters_folder, parallel=4) as engine:
        with all_at_once(engine):
            asked = [engine.generate("Hello", options=o) for o in given]
        for generation, end in zip(asked, alone, strict=True):
            told = [e for e in generation if isinstance(e, TextDelta) and e.token is not None]
            assert tuple(e.token for e in told) == end.tokens
            assert all(e.logprob is not None and math.isfinite(e.logprob) for e in told)
            assert all(math.isfinite(p) for e in told for _, p in e.top_logprobs)


@pytest.mark.parametrize("parallel", [1, 4])
def test_about_pictures(seeing_folder: Path, parallel: int) -> None:
    """Also in company, and when it goes on; scripts/check_schemas.py has hundreds."""
    with load(seeing_folder, parallel=parallel) as engine:
        with all_at_once(engine):
            shown = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
            asked = [
                engine.generate("What?", [picture], options(BOB, seed))
                for seed, picture in enumerate(shown)
            ]
        ends = [generation.result() for generation in asked]
        assert [end.images_encoded for end in ends] == [1, 1]
        assert all(holds(BOB, end) for end in ends)
        chat = engine.chat(options=options(["yes", "no"]))
        assert chat.send("Red?", images=[shown[0]]).result().answer in ("yes", "no")
        second = chat.send("Blue?").result()
        assert second.answer in ("yes", "no")
        assert second.cached_tokens > second.prompt_tokens // 2


def test_no_end_before_it_is_whole(engine: Engine) -> None:
    """However much the model would like to end; and then, however little."""
    eos = 2
    end = engine.generate(
        "Hello", options=options(Schema.regex("a{9}"), logit_bias={eos: 100.0})
    ).result()
    assert (end.answer, end.finish_reason) == ("a" * 9, "stop")
    end = engine.generate(
        "Hello", options=options(Schema.regex("a{9}"), logit_bias={eos: -100.0})
    ).result()
    assert (end.answer, end.finish_reason) == ("a" * 9, "stop")


def test_white_space_ends(engine: Engine) -> None:
    """Of a model that would write nothing else."""
    bias = dict.fromkeys(engine.tokenize(" \n\t"), 100.0)
    end = engine.generate("Hello", options=options(BOB, logit_bias=bias, max_tokens=400)).result()
    assert end.finish_reason == "stop"
    holds(BOB, end)


def test_cut_off(engine: Engine) -> None:
    end = engine.generate("Hello", options=options(Schema.regex("a{9}"), max_tokens=4)).result()
    assert (end.answer, end.finish_reason) == ("aaaa", "length")
    end = engine.generate("Hello", options=options(Schema.regex("a{9}"), max_tokens=9)).result()
    assert (end.answer, end.finish_reason) == ("a" * 9, "length")
    end = engine.generate("Hello", options=options(Schema.regex("a{5}ba{5}"), stop="ba")).result()
    assert (end.answer, end.finish_reason) == ("aaaaa", "stop_string")


def test_a_chat_goes_on_warm(engine: Engine) -> None:
    chat = engine.chat(options=options(["yes", "no"]))
    first = chat.send("Is it?").result()
    second = chat.send("Really?", options=options(Schema.regex("[0-9]{3}"))).result()
    assert first.answer in ("yes", "no")
    assert re.fullmatch("[0-9]{3}", second.answer)
    assert second.cached_tokens > second.prompt_tokens // 2


@pytest.mark.parametrize(
    ("schema", "saying"),
    [
        ({"not": {}}, "Unimplemented keys"),
        ({"type": "objekt"}, "Invalid type: objekt"),
        ({"properties": {"a": {"$ref": "#/nowhere"}}}, "/nowhere"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, r"minimum \(5\) is greater than"),
        ({"type": "string", "format": "colour"}, "Unknown format: colour"),
        ({"type": "string", "pattern": "(a"}, "unclosed group"),
        (Schema.regex("(?=a)b"), "look-around"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "nothing that this model"),
        (Schema.grammar("start: word"), 'unknown name: "word"'),
        (Schema.grammar("{"), ""),
    ],
)
def test_what_cannot_be_held_to(engine: Engine, schema: Any, saying: str) -> None:
    """Is told when it is asked, and the engine goes on."""
    with pytest.raises(OptionError, match=f"^schema: .*{saying}") as told:
        engine.generate("Hello", options=options(schema))
    assert "\n" not in str(told.value)
    assert engine.generate("Hello", options=options(["a"])).result().answer == "a"


def test_a_row_that_cannot_go_on_is_alone_in_that(letters_folder: Path) -> None:
    """Beside it others do."""
    with load(letters_folder, parallel=4) as engine:
        with all_at_once(engine):
            # No token of this model is, or begins with, a character that is not in ASCII.
            lost = engine.generate("Hello", options=options(Schema.regex("ab\u00e9")))
            other = engine.generate("Hello", options=options(Schema.regex("[a-c]{9}")))
        with pytest.raises(OptionError, match=r"^schema: "):
            lost.result()
        assert re.fullmatch("[a-c]{9}", other.result().answer)


def test_it_is_compiled_once(letters: Engine) -> None:
    guides = letters._guides
    assert isinstance(guides, Guides)
    compiled: list[Schema] = []
    compile_ = guides._compile

    def counted(schema: Schema) -> Any:
        compiled.append(schema)
        return compile_(schema)

    guides._compile = counted  # type: ignore[method-assign]
    try:
        for _ in range(3):
            letters.generate("Hello", options=options(Schema.regex("compiled once"))).result()
        assert len(compiled) == 1
        for _ in range(2):  # nor is one that is wrong
            with pytest.raises(OptionError, match="unclosed group"):
                letters.generate("Hello", options=options(Schema.regex("(compiled once")))
        assert len(compiled) == 2
        for i in range(KEPT + 5):
            guides.guide(Schema.choices([f"number {i}"]))
        assert len(guides._compiled) == KEPT
    finally:
        guides._compile = compile_  # type: ignore[method-assign]


def test_what_takes_too_long(letters_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is given up, and when nothing comes of it, so are those behind it; known ones are not."""
    gate = threading.Event()
    with load(letters_folder) as engine:
        guides = engine._guides
        assert isinstance(guides, Guides)
        known = Schema.choices(["known"])
        guides.guide(known)
        monkeypatch.setattr(guide, "SECONDS", 0.1)
        guides._compile = lambda schema: gate.wait()  # type: ignore[method-assign]
        for i in range(guide.AT_ONCE + 2):
            with pytest.raises(OptionError, match=r"^schema: it takes more than 0.1 seconds"):
                engine.generate("Hello", options=options([f"number {i}"]))
        assert engine.generate("Hello", options=options(known)).result().answer == "known"
        gate.set()


def test_those_that_took_long_are_not_many(letters: Engine) -> None:
    guides = letters._guides
    assert isinstance(guides, Guides)
    for i in range(6):
        guides.guide(Schema.choices([f"long {i}"]))
    for one in guides._compiled.values():
        one.seconds = guide.KEPT_SECONDS / 3.5
    guides.guide(Schema.choices(["one more"]))
    assert list(guides._compiled)[:-1] == [Schema.choices([f"long {i}"]) for i in (3, 4, 5)]


def test_a_model_without_an_end(letters_folder: Path) -> None:
    with load(letters_folder) as engine:
        kit: Any = engine._worker.kit
        kit.tokenizer._eos_token_ids = set()
        with pytest.raises(OptionError, match="no token that ends an answer"):
            engine.generate("Hello", options=options(["a"]))
