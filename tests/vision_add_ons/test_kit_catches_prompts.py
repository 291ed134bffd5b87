"""The conformance kit catches prompts that are not those of the family's own processor."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from support.planted import Planting

from vision_add_ons.errors import PromptError
from vision_add_ons.gemma3 import Gemma3AddOn
from vision_add_ons.minicpmv import MiniCPMV47AddOn
from vision_add_ons.pixtral import PixtralAddOn
from vision_add_ons.qwen2_vl import Qwen2VLAddOn
from vision_add_ons.testing.conversation_checks import check_conversations

Json = dict[str, Any]
REFUSED = r"is refused .*where all of it stands"
OTHER = r"the prompt is .* and the processor's is .* differ from the id at"


class PicturesFirst(Qwen2VLAddOn):
    def place_images(self, message: Json, markers: Sequence[str]) -> Json:
        parts = sorted(message["content"], key=lambda part: part["type"])
        return {**message, "content": parts}


class TextsJoined(PixtralAddOn):
    """What stands behind a picture goes to what stands before it."""

    def place_images(self, message: Json, markers: Sequence[str]) -> Json:
        texts = [part for part in message["content"] if part["type"] == "text"]
        joined = {"type": "text", "text": "".join(part["text"] for part in texts)}
        images = [part for part in message["content"] if part["type"] == "image"]
        return {**message, "content": [joined, *images]}


class BlanksDropped(Qwen2VLAddOn):
    def place_images(self, message: Json, markers: Sequence[str]) -> Json:
        parts = [p for p in message["content"] if p["type"] == "image" or p["text"].strip()]
        return {**message, "content": parts}


class WordsDropped(Qwen2VLAddOn):
    def place_images(self, message: Json, markers: Sequence[str]) -> Json:
        return {**message, "content": [p for p in message["content"] if p["type"] == "image"]}


class QuestionsAlone(Qwen2VLAddOn):
    """The family's template has places in every role."""

    def place_images(self, message: Json, markers: Sequence[str]) -> Json:
        if message["role"] != "user":
            raise PromptError("pictures go with questions")
        return message


class SecondBos(Gemma3AddOn):
    def prepare_text(self, text: str) -> str:
        return "<s>" + super().prepare_text(text)


class NoBos(Gemma3AddOn):
    def prepare_text(self, text: str) -> str:
        return super().prepare_text(text).removeprefix("<s>")


class SpacesMerged(Qwen2VLAddOn):
    def prepare_text(self, text: str) -> str:
        return " ".join(text.split(" ")).replace("  ", " ")


class BreaksLeftOut(Gemma3AddOn):
    def prepare_text(self, text: str) -> str:
        return super().prepare_text(text).replace("\n\n<start_of_image>", "<start_of_image>")


class NumbersFromOne(MiniCPMV47AddOn):
    def __init__(self, folder: Path, config: Json) -> None:
        super().__init__(folder, config)
        self.tokens = replace(self.tokens, numbers=self.tokens.numbers[1:])


@pytest.mark.parametrize(
    ("faulty", "saying"),
    [
        (PicturesFirst, OTHER),
        (TextsJoined, OTHER),
        (BlanksDropped, OTHER),
        (WordsDropped, REFUSED),
        (QuestionsAlone, REFUSED),
        (SecondBos, OTHER),
        (NoBos, OTHER),
        (SpacesMerged, OTHER),
        (BreaksLeftOut, OTHER),
        (NumbersFromOne, OTHER),
    ],
)
def test_conversations(planting: Planting, faulty: Any, saying: str) -> None:
    planting.caught(faulty, check_conversations, saying)


def test_what_compares_too_little(planting: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that refuses nearly all would be a template that nothing is known of."""
    kit = planting.kit("qwen2_vl")
    picky = "{{ raise_exception('no') }}" + next(iter(kit.reference.templates.values()))
    monkeypatch.setattr(kit.reference, "templates", {"picky": picky})
    with pytest.raises(AssertionError, match=r"only 0 could be compared: 40 must be"):
        check_conversations(kit)
