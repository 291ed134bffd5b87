"""Texts and images of one message stay in their order, by whatever way they come."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from support.qwen2_vl_reference import Qwen2VLReference

from engine import (
    Engine,
    GenerationOptions,
    ImageError,
    Message,
    PromptError,
    conversation_file,
    load,
    load_picture,
)
from engine.prompts.builder import Prompt, PromptBuilder
from model_kit.kit import load_model_kit
from vision_add_ons.testing import Photo, written
from vision_add_ons.testing.text_tokenizer import write_text_tokenizer

PHOTOS = (Photo(60, 60, 1).image, Photo(90, 60, 2).image)
ONE = GenerationOptions(max_tokens=1)
PARTS = """\
{%- for m in messages -%}
  {{- m['role'] + ': ' -}}
  {%- if m['content'] is string -%}
    {{- m['content'] -}}
  {%- else -%}
    {%- for part in m['content'] -%}
      {{- '<|image_pad|>' if part['type'] == 'image' else part['text'] -}}
    {%- endfor -%}
  {%- endif -%}
  {{- '\\n' -}}
{%- endfor -%}
{{- 'assistant: ' -}}
"""
"""It has places for images in messages of all roles."""
ORDERS = ("t", "i", "ti", "it", "tit", "iti", "titit", "iitt", "ttii", "titi")


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> PromptBuilder:
    """One of a family whose template writes a token for each image."""
    place = tmp_path_factory.mktemp("qwen2_vl")
    reference = Qwen2VLReference(1)
    folder = written(reference, place / "m")
    write_text_tokenizer(folder, reference.special_tokens)
    for file in folder.glob("chat_template.*"):
        file.unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": PARTS}))
    return PromptBuilder(load_model_kit(folder))


@pytest.fixture(scope="module")
def seeing(seeing_folder: Path) -> Iterator[Engine]:
    """One of a family whose template knows nothing of images."""
    with load(seeing_folder) as engine:
        yield engine


def parts_of(order: str) -> list[Any]:
    """Texts that tell their places, and images in turns."""
    images = [load_picture(photo) for photo in PHOTOS]
    return [f"part {i} " if kind == "t" else images[i % 2] for i, kind in enumerate(order)]


def as_dictionary(part: Any) -> Any:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image", "image": part.pixels()}


def told(made: Prompt, decode: Any) -> list[Any]:
    """A prompt as texts, and its images by their digests."""
    found: list[Any] = []
    done = 0
    for span in made.spans:
        found += [decode(made.tokens[done : span.start]), span.picture.digest.encode()]
        done = span.end
    found.append(decode(made.tokens[done:]))
    return [part for part in found if part]


def joined(parts: list[Any], before: str = "user: ", behind: str = "\nassistant: ") -> list[Any]:
    """What is expected of a message of such parts."""
    found: list[Any] = [before]
    for part in [*parts, behind]:
        if not isinstance(part, str):
            found.append(part.digest.encode())
        elif isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return found


@pytest.mark.parametrize("order", ORDERS)
def test_as_a_template_places_them(builder: PromptBuilder, order: str) -> None:
    parts = parts_of(order)
    for content in (parts, [as_dictionary(part) for part in parts]):
        made = builder.build([{"role": "user", "content": content}])
        assert told(made, builder.decode) == joined(parts)


@pytest.mark.parametrize("order", ORDERS)
def test_where_the_template_knows_no_images(seeing: Engine, order: str) -> None:
    parts = parts_of(order)
    message = {"role": "user", "content": [as_dictionary(part) for part in parts]}
    made = seeing.generate([message], options=ONE).prompt
    assert told(made, seeing.detokenize) == joined(parts)
    assert seeing.generate([Message("user", parts)], options=ONE).prompt.tokens == made.tokens


@pytest.mark.parametrize("role", ["system", "assistant", "tool"])
def test_messages_of_each_role(builder: PromptBuilder, role: str) -> None:
    """As far as the template takes them there."""
    parts = parts_of("titi")
    messages = [Message("user", "Hm?"), Message(role, parts), Message("user", "Well?")]
    expected = joined(parts, f"user: Hm?\n{role}: ", "\nuser: Well?\nassistant: ")
    assert told(builder.build(messages), builder.decode) == expected


def test_images_that_are_given_apart_come_first(seeing: Engine) -> None:
    photos = [load_picture(photo) for photo in PHOTOS]
    content = [photos[0], "What ", photos[1], "is this?"]
    apart = seeing.generate([{"role": "user", "content": content}], [photos[1]], ONE).prompt
    assert told(apart, seeing.detokenize) == joined([photos[0], photos[1], *content[1:]])


def test_a_chat_sends_parts(seeing: Engine, tmp_path: Path) -> None:
    """Texts, loaded images, dictionaries; so they are kept, saved, and gone on with."""
    chat = seeing.chat(options=ONE)
    texts_and_images = parts_of("titit")
    first = chat.send([*texts_and_images[:3], *map(as_dictionary, texts_and_images[3:])])
    assert told(first.prompt, seeing.detokenize) == joined(texts_and_images)
    first.result()
    assert list(chat.messages[0].parts) == texts_and_images
    second = chat.send("And?")
    assert second.prompt.tokens[: len(first.prompt.tokens)] == first.prompt.tokens
    assert second.result().images_encoded == 0
    chat.save(tmp_path / "talk").result(600)
    assert tuple(conversation_file.read(tmp_path / "talk")) == chat.messages
    again = seeing.chat(options=ONE, restore=tmp_path / "talk")
    assert again.messages == chat.messages
    third = again.send("And now?")
    assert third.prompt.tokens[: len(first.prompt.tokens)] == first.prompt.tokens
    third.result()


def test_one_image_is_a_question(seeing: Engine) -> None:
    chat = seeing.chat(options=ONE)
    asked = chat.send([as_dictionary(load_picture(PHOTOS[0]))])
    assert told(asked.prompt, seeing.detokenize) == joined([load_picture(PHOTOS[0])])
    asked.result()


def test_what_is_no_question_leaves_the_chat_as_it_was(seeing: Engine) -> None:
    chat = seeing.chat(options=ONE)
    image = load_picture(PHOTOS[0])
    half = ["whole", image, "half \ud800"]
    for wrong in (None, 5, b"bytes", {"type": "text", "text": "a"}, [5], [None], [["a"]], half):
        with pytest.raises(PromptError):
            chat.send(wrong)  # type: ignore[arg-type]
    for wrong in ([PHOTOS[0]], [{"type": "image"}], ["a", {"type": "video", "video": "a"}]):
        with pytest.raises(PromptError, match="a part of a message is a text or an image"):
            chat.send(wrong)
    with pytest.raises(ImageError):
        chat.send(["a", {"type": "image", "image": "absent.png"}])
    assert chat.messages == ()
    assert chat.send(["a", image]).result().error is None


def test_a_transcript_keeps_the_order(
    seeing_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from io import StringIO

    from engine.cli import main

    first, second = (load_picture(photo) for photo in PHOTOS)
    history = [
        Message("user", ("This", first, "or", second, "that?")),
        Message("assistant", "", tool_calls=({"name": "look", "arguments": {}},)),
        Message("tool", ("A view:", second)),
        Message("assistant", "That."),
    ]
    conversation_file.write(tmp_path / "talk", history)
    monkeypatch.setattr("sys.stdin", StringIO(f"/save {tmp_path / 'talk.md'}\n"))
    model = ("--model", str(shutil.copytree(seeing_folder, tmp_path / "eyes")))
    assert main(["chat", *model, "--resume", str(tmp_path / "talk")]) == 0
    assert (tmp_path / "talk.md").read_text() == (
        "# Conversation with eyes\n\n## You\n\nThis\n\n*Picture: 60x60*\n\nor\n\n"
        "*Picture: 90x60*\n\nthat?\n\n## eyes\n\n\n\n## Tool\n\nA view:\n\n*Picture: 90x60*\n\n"
        "## eyes\n\nThat.\n"
    )
