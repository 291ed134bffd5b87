"""`load(add_on=)`: a class that is handed in serves a checkpoint, registered or not."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from PIL import Image
from support.paligemma_reference import PaliGemmaReference

from engine import GenerationOptions, load
from vision_add_ons.errors import UnsupportedCheckpoint
from vision_add_ons.paligemma import PaliGemmaAddOn
from vision_add_ons.testing import BOS, written


class OwnEyes(PaliGemmaAddOn):
    model_types = ("paligemma", "not_registered")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(PaliGemmaReference(1), tmp_path_factory.mktemp("handed_in"))


def test_it_goes_before_the_registry(folder: Path) -> None:
    with load(folder, add_on=OwnEyes) as engine:
        assert engine.report.add_on == f"{__name__}:OwnEyes"
        one = GenerationOptions(max_tokens=1)
        picture = Image.new("RGB", (9, 9))
        assert engine.generate([80, BOS, 9], images=[picture], options=one).result().tokens
    with load(folder) as engine:
        assert engine.report.add_on == "vision_add_ons.paligemma:PaliGemmaAddOn"


def test_another_model_type_is_refused(folder: Path) -> None:
    class OtherEyes(PaliGemmaAddOn):
        model_types = ("other", "eyes")

    with pytest.raises(UnsupportedCheckpoint, match=r"OtherEyes serves other and eyes, "):
        load(folder, add_on=OtherEyes)


def test_a_type_that_nobody_registered(folder: Path, copy: Path) -> None:
    """As a contributor has it who has installed nothing yet. The class reads the rest."""

    class Eyes(OwnEyes):
        def __init__(self, folder: Path, config: dict) -> None:
            super().__init__(folder, {**config, "model_type": "paligemma"})

    file = copy / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "not_registered"}))
    with load(copy, add_on=Eyes) as engine:
        assert engine.report.model_type == "not_registered"
