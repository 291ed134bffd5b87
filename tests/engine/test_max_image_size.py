"""`max_image_size`: pictures shrunk before anything else looks at them."""

import json
import os
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
from PIL import Image

from engine import Engine, GenerationOptions, OptionError, load
from engine.cli import main
from engine.images import LoadedPicture, load_picture

ASTRONAUT = os.path.join(os.path.dirname(skimage.data.__file__), "astronaut.png")
SHORT = {"max_tokens": 6}


@pytest.fixture(scope="module")
def seeing(seeing_folder: Path) -> Iterator[Engine]:
    with load(seeing_folder) as engine:
        yield engine


@pytest.fixture
def photo(seed: int) -> Image.Image:
    """800x600 pixels, and never the same twice: the engine remembers pictures."""
    noise = np.random.default_rng(seed).integers(0, 256, (200, 200, 3), np.uint8)
    with Image.open(ASTRONAUT) as image:
        large = image.convert("RGB").resize((800, 600))
    large.paste(Image.fromarray(noise))
    return large


def encoded(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def in_messages(engine: Engine, image: Any, options: GenerationOptions) -> Any:
    return engine.generate([{"role": "user", "content": "What is this?"}], [image], options)


def in_content(engine: Engine, image: Any, options: GenerationOptions) -> Any:
    parts = [{"type": "image", "image": image}, {"type": "text", "text": "What is this?"}]
    return engine.generate([{"role": "user", "content": parts}], options=options)


def in_raw_text(engine: Engine, image: Any, options: GenerationOptions) -> Any:
    return engine.generate("In: What is this?\nOut:", [image], options)


def in_token_ids(engine: Engine, image: Any, options: GenerationOptions) -> Any:
    return engine.generate(engine.tokenize("What is this?"), [image], options)


def in_a_chat(engine: Engine, image: Any, options: GenerationOptions) -> Any:
    return engine.chat(options=options).send("What is this?", images=[image])


@pytest.mark.parametrize("ask", [in_messages, in_content, in_raw_text, in_token_ids, in_a_chat])
def test_the_same_as_a_picture_resized_by_hand(
    ask: Callable[[Engine, Any, GenerationOptions], Any], seeing: Engine, photo: Image.Image
) -> None:
    limited = ask(seeing, encoded(photo), GenerationOptions(**SHORT, max_image_size=100))
    by_hand = photo.resize((100, 75), Image.Resampling.BICUBIC)
    same = ask(seeing, by_hand, GenerationOptions(**SHORT))
    whole = ask(seeing, photo, GenerationOptions(**SHORT))
    assert limited.prompt.spans[0].picture.size == (100, 75)
    assert limited.prompt.key == same.prompt.key
    assert limited.prompt.key != whole.prompt.key
    answer = limited.result()
    assert answer.tokens == same.result().tokens
    assert same.result().cached_tokens == answer.prompt_tokens - 1
    assert whole.result().cached_tokens < answer.prompt_tokens - 1


def test_each_answer_of_a_chat_has_its_own(seeing: Engine, photo: Image.Image) -> None:
    """Pictures of earlier messages too: what the model saw of them is what was asked for now."""
    chat = seeing.chat(options=GenerationOptions(**SHORT, max_image_size=100))
    first = chat.send("What is this?", images=[photo]).result()
    follow_up = chat.send("Are you sure?").result()
    assert follow_up.images_encoded == 0
    assert follow_up.cached_tokens >= first.prompt_tokens
    closer = chat.send("Look closer.", options=GenerationOptions(**SHORT)).result()
    assert closer.images_encoded == 1
    assert chat.messages[0].images[0].size == (800, 600)


def test_on_the_command_line(
    seeing_folder: Path, photo: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo.save(tmp_path / "large.png")
    photo.resize((100, 75), Image.Resampling.BICUBIC).save(tmp_path / "small.png")
    answers = []
    for file, more in (("large.png", ["--max-image-size", "100"]), ("small.png", [])):
        asked = ["--model", str(seeing_folder), "--image", str(tmp_path / file)]
        asked += ["--prompt", "Look"]
        assert main(["generate", *asked, "--max-tokens", "6", "--json", *more]) == 0
        answers.append(json.loads(capsys.readouterr().out)["answer"])
    assert answers[0] == answers[1]
    assert main(["chat", "--max-image-size", "0"]) == 2
    assert "max_image_size must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("value", [0, -1, 1.5, "100", True, (100, 100)])
def test_what_is_no_size(value: Any) -> None:
    with pytest.raises(OptionError, match="max_image_size"):
        GenerationOptions(max_image_size=value)


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [
        ((800, 600), 100, (100, 75)),
        ((600, 800), 100, (75, 100)),
        ((801, 600), 800, (800, 599)),
        ((190, 1), 50, (50, 1)),
        ((1, 190), 50, (1, 50)),
        ((2, 380), 1, (1, 1)),
        ((300, 300), 1, (1, 1)),
        ((333, 111), 100, (100, 33)),
    ],
)
def test_sides(size: tuple[int, int], longest: int, expected: tuple[int, int], seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    small = load_picture(image).within(longest)
    assert small.size == small.pixels().size == expected
    by_hand = LoadedPicture(image.resize(expected, Image.Resampling.BICUBIC))
    assert small == by_hand


@pytest.mark.parametrize("longest", [None, 800, 801, 10**9])
def test_small_enough_is_left_alone(longest: int | None, photo: Image.Image) -> None:
    picture = load_picture(photo)
    assert picture.within(longest) is picture


@pytest.mark.parametrize("as_bytes", [True, False])
def test_released_and_made_again(as_bytes: bool, photo: Image.Image) -> None:
    picture = load_picture(encoded(photo) if as_bytes else photo)
    small = picture.within(100)
    before = small.pixels().tobytes()
    for _ in range(2):
        small.release()
        picture.release()
        assert small.pixels().size == (100, 75)
        assert small.pixels().tobytes() == before
    assert picture.pixels().tobytes() == photo.tobytes()
    assert small == load_picture(encoded(photo)).within(100)
    assert picture.within(100) is small  # made once, however many turns ask for it
