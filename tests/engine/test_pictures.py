"""Pictures through a Moxin-format checkpoint, all of it small and random."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import skimage
from mlx_lm import stream_generate
from PIL import Image
from safetensors.numpy import load_file
from support import moxin_checkpoint as moxin
from support.at_once import all_at_once, cancel_at
from support.short_chats import of_digits

from engine import Engine, GenerationOptions, ImageError, Progress, TextDelta, load
from engine.images import LoadedPicture
from model_kit import load_model_kit
from vision_add_ons.errors import MissingWeight
from vision_add_ons.testing import Photo

ASTRONAUT = os.path.join(os.path.dirname(skimage.data.__file__), "astronaut.png")
CAT = os.path.join(os.path.dirname(skimage.data.__file__), "chelsea.png")
SHORT = GenerationOptions(max_tokens=8, logprobs=True)
ROWS = moxin.PATCHES


@pytest.fixture(scope="module")
def folder(seeing_folder: Path) -> Path:
    return seeing_folder


@pytest.fixture(scope="module")
def seeing(folder: Path) -> Iterator[Engine]:
    with load(folder) as engine:
        yield engine


def spoken(generation: Any) -> tuple[list[int | None], list[float | None]]:
    deltas = [e for e in generation if isinstance(e, TextDelta) and e.token is not None]
    return [d.token for d in deltas], [d.logprob for d in deltas]


def distance(a: Any, b: Any) -> float:
    x, y = np.array(a, float), np.array(b, float)
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


def test_a_text_follow_up_to_a_picture_is_all_cached(seeing: Engine) -> None:
    chat = seeing.chat(options=of_digits(seeing, SHORT))
    first = chat.send("What is this?", images=[ASTRONAUT]).result()
    assert first.images_encoded == 1
    assert first.prompt_tokens > ROWS
    second = chat.send("Are you sure?").result()
    assert second.cached_tokens >= first.prompt_tokens + len(first.tokens)
    assert second.images_encoded == 0
    third = chat.send("And what is this?", images=[CAT]).result()
    assert third.images_encoded == 1
    assert third.cached_tokens >= second.prompt_tokens + len(second.tokens)


@pytest.mark.parametrize(("checkpoint", "rows"), [("seeing_folder", ROWS), ("seeing_demo", 64)])
def test_an_image_turn_is_what_mlx_lm_makes_of_the_rows(
    request: pytest.FixtureRequest, checkpoint: str, rows: int, seed: int
) -> None:
    """The engine against add-on, embeddings and mlx-lm put together by hand."""
    folder = request.getfixturevalue(checkpoint)
    kit = load_model_kit(folder)
    assert kit.add_on is not None
    assert kit.text_model is not None
    question = [{"role": "user", "content": f"Look at number {seed}."}]
    with load(folder) as engine:
        generation = engine.generate(question, [ASTRONAUT, CAT], replace(SHORT, max_tokens=4))
        tokens, logprobs = spoken(generation)
    prompt = generation.prompt
    assert [s.length for s in prompt.spans] == [rows, rows]
    embeddings = kit.text_model.model.embed_tokens(mx.array(prompt.tokens))
    for span in prompt.spans:
        embeddings[span.start : span.end] = kit.add_on.encode_image(span.picture)
    responses = list(
        stream_generate(
            kit.text_model,
            kit.tokenizer,
            mx.array(prompt.tokens),
            max_tokens=4,
            input_embeddings=embeddings,
        )
    )
    assert [r.token for r in responses][: len(tokens)] == tokens
    alone = [float(r.logprobs[r.token]) for r in responses][: len(tokens)]
    assert distance(logprobs, alone) <= 2e-5


@pytest.mark.parametrize("step", [7, 32])
def test_chunks_and_caches_change_nothing_but_rounding(folder: Path, step: int, seed: int) -> None:
    question = [{"role": "user", "content": f"Number {seed}: what do you see here?"}]
    with load(folder) as engine:
        cold = spoken(engine.generate(question, [ASTRONAUT], SHORT))
    with load(folder) as engine:
        options = GenerationOptions(max_tokens=8, logprobs=True, prefill_step_size=step)
        steps = spoken(engine.generate(question, [ASTRONAUT], options))
        warm = engine.generate(question, [ASTRONAUT], SHORT)
        again = spoken(warm)
        assert warm.result().cached_tokens == warm.result().prompt_tokens - 1
    for tokens, logprobs in (steps, again):
        assert tokens == cold[0]
        assert distance(logprobs, cold[1]) <= 2e-5


def test_pictures_of_one_size_are_never_mistaken(seeing: Engine, seed: int) -> None:
    """Their placeholders are alike: only the cache key tells them apart."""
    pictures = [Photo(90, 60, seed + i).image for i in range(3)]
    question = [{"role": "user", "content": f"What is number {seed}?"}]
    cold = []
    for picture in pictures:
        generation = seeing.generate(question, [picture], SHORT)
        cold.append(spoken(generation))
        start = generation.prompt.spans[0].start
        assert generation.result().cached_tokens <= start
        assert generation.result().images_encoded == 1
    for i in (1, 0, 2):
        generation = seeing.generate(question, [pictures[i].copy()], SHORT)
        tokens, logprobs = spoken(generation)
        assert generation.result().images_encoded == 0
        assert tokens == cold[i][0]
        assert distance(logprobs, cold[i][1]) <= 2e-5
    assert distance(cold[0][1], cold[1][1]) > 1e-3


def test_a_prompt_is_never_cut_inside_a_picture(seeing: Engine, seed: int) -> None:
    picture = Photo(80, 80, seed).image
    question = [{"role": "user", "content": f"Cancelled {seed}."}]
    options = GenerationOptions(max_tokens=8, logprobs=True, prefill_step_size=3)
    with all_at_once(seeing):
        generation = seeing.generate(question, [picture], options)
        span = generation.prompt.spans[0]

        def within(event: Any) -> bool:
            read = event.cached + event.processed if isinstance(event, Progress) else 0
            return span.start < read < span.end

        cancel_at(generation, within)
    assert generation.result().finish_reason == "cancelled"
    again = seeing.generate(question, [picture], SHORT)
    tokens, logprobs = spoken(again)
    assert again.result().cached_tokens == span.start
    seeing._worker.memory.budget.shrink(0)  # type: ignore[union-attr]
    cold = spoken(seeing.generate(question, [picture], SHORT))
    assert tokens == cold[0]
    assert distance(logprobs, cold[1]) <= 2e-5


def test_text_on_a_vision_checkpoint_is_plain_text(
    seeing: Engine, letters: Engine, seed: int
) -> None:
    """The same tokens and figures as on the text checkpoint, to the bit, also after a picture."""
    seeing.generate([{"role": "user", "content": "Look."}], [ASTRONAUT], SHORT).result()
    for cached in (letters, seeing):
        cached._worker.memory.budget.shrink(0)  # type: ignore[union-attr]
    here, there = seeing.chat(), letters.chat()
    digits = of_digits(seeing, SHORT)
    for question, options in ((f"Of {seed}.", digits), ("More?", digits), ("Why?", SHORT)):
        a, b = here.send(question, options=options), there.send(question, options=options)
        assert spoken(a) == spoken(b)
        assert a.result().cached_tokens == b.result().cached_tokens
        assert a.result().prompt_tokens == b.result().prompt_tokens


def test_the_add_on_s_own_prompt_form(tmp_path: Path, tiny_folder: Path, seed: int) -> None:
    """[BOS] rows `In: ...`; later pictures right after the end of the previous answer."""
    with load(moxin.write_seeing(tmp_path / "in-out", tiny_folder, seed, template=False)) as engine:
        assert any("chat template" in line for line in engine.report.assumed)
        chat = engine.chat(options=SHORT)
        first = chat.send("What is this?", images=[ASTRONAUT])
        bos, eos = 1, 2
        text = engine.tokenize("In: What is this?\nOut:")
        assert first.prompt.tokens == [bos] + [0] * ROWS + text
        answer = first.result()
        second = chat.send("And these?", images=[CAT, ASTRONAUT])
        tokens = second.prompt.tokens
        spans = second.prompt.spans
        assert [(s.length, s.picture.digest) for s in spans] == [
            (ROWS, chat_picture.digest)
            for chat_picture in (spans[0].picture, spans[1].picture, spans[0].picture)
        ]
        assert tokens[spans[1].start - 1] == eos
        assert spans[2].start == spans[1].end
        assert tokens[spans[2].end :] == engine.tokenize("In: And these?\nOut:")
        end = second.result()
        # The template trims an answer: one with white space around it is read anew.
        assert end.cached_tokens >= answer.prompt_tokens
        assert (end.images_encoded, end.images_reused) == (1, 1)
        raw = engine.generate("<|im_start|>Hello", [CAT], SHORT)
        assert raw.prompt.spans[0].start == 1
        raw.result()


def test_messages_carry_pictures_in_every_form(seeing: Engine) -> None:
    data = Path(CAT).read_bytes()
    contents: list[Any] = [
        {"role": "user", "content": "Hm?", "images": [CAT]},
        {"role": "user", "content": [{"type": "image", "image": data}, _text("Hm?")]},
        {"role": "user", "content": [{"type": "image_url", "image_url": CAT}, _text("Hm?")]},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": CAT}}, _text("Hm?")],
        },
    ]
    generations = [seeing.generate([message], options=SHORT) for message in contents]
    assert len({tuple(g.prompt.tokens) for g in generations}) == 1
    assert len({g.prompt.spans[0].picture.digest for g in generations}) == 1
    assert len({g.result().tokens for g in generations}) == 1


def test_pictures_belong_to_the_last_user_message(seeing: Engine) -> None:
    """Also when an earlier one says the same."""
    question = {"role": "user", "content": "What is this?"}
    messages = [question, {"role": "assistant", "content": "No idea."}, question]
    generation = seeing.generate(messages, [CAT], SHORT)
    assert generation.prompt.spans[0].start > len(seeing.tokenize("What is this? No idea."))
    generation.result()


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def test_a_bad_picture_leaves_the_conversation_as_it_was(seeing: Engine, tmp_path: Path) -> None:
    chat = seeing.chat(options=SHORT)
    (tmp_path / "no.png").write_bytes(b"no picture")
    with pytest.raises(ImageError):
        chat.send("What is this?", images=[tmp_path / "no.png"])
    assert chat.messages == ()
    chat.send("Hello?").result()


def test_photographs_are_not_kept_decoded(seeing: Engine) -> None:
    chat = seeing.chat(options=SHORT)
    chat.send("What is this?", images=[ASTRONAUT]).result()
    picture = chat.messages[0].images[0]
    assert picture._pixels is None
    assert picture.pixels().size == (512, 512)


def test_decoder_only(folder: Path, letters: Engine, seed: int) -> None:
    with load(folder, decoder_only=True) as blind:
        with pytest.raises(ImageError, match="without its eyes"):
            blind.generate("What?", [Image.new("RGB", (8, 8))])
        prompt = f"Number {seed} is"
        assert spoken(blind.generate(prompt, options=SHORT)) == spoken(
            letters.generate(prompt, options=SHORT)
        )


def test_a_tower_s_missing_weight_is_named(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    name = "vision_backbone.fused_featurizer.blocks.1.mlp.fc2.bias"
    del tensors[name]
    moxin.write(broken, tensors, json.loads((broken / "config.json").read_text()))
    with pytest.raises(MissingWeight, match=name):
        load(broken)


def test_no_picture_stays_decoded(seeing: Engine, seed: int) -> None:
    """Neither one that was encoded nor one whose rows were at hand."""
    images = [Image.new("RGB", (20, 20), (seed % 256, i, 7)) for i in range(2)]

    def shown(*which: int) -> tuple[int, int]:
        pictures = [LoadedPicture(images[i], images[i].copy) for i in which]
        end = seeing.generate("Look.", images=pictures, options=SHORT).result()
        assert [picture._pixels for picture in pictures] == [None] * len(which)
        return end.images_encoded, end.images_reused

    assert shown(0) == (1, 0)
    assert shown(1, 0) == (1, 1)


def test_cancelling_waits_for_one_picture_at_most(seeing: Engine, seed: int) -> None:
    at_work, go_on = Event(), Event()
    decoded = []

    def decode(i: int) -> Image.Image:
        decoded.append(i)
        at_work.set()
        go_on.wait(600)
        return images[i]

    images = [Image.new("RGB", (20, 20), (seed % 256, i, 0)) for i in range(4)]
    pictures = [LoadedPicture(image, partial(decode, i)) for i, image in enumerate(images)]
    for picture in pictures:
        picture.release()
    generation = seeing.generate("Look.", images=pictures)
    assert at_work.wait(600)
    generation.cancel()
    go_on.set()
    assert generation.result().finish_reason == "cancelled"
    assert len(decoded) == 1
