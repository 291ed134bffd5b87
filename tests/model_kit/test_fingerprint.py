"""What a fingerprint covers of the add-on that runs a checkpoint."""

import importlib
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from model_kit.fingerprint import fingerprint
from vision_add_ons.base import VisionAddOn


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"a": mx.zeros(4)})
    return tmp_path


def test_an_update_of_what_an_add_on_derives_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    code = "from vision_add_ons.base import VisionAddOn\n\nclass First(VisionAddOn): pass\n"
    (folder / "first_eyes.py").write_text(code)
    (folder / "second_eyes.py").write_text(
        "from first_eyes import First\n\nclass Second(First): pass\n"
    )
    second = importlib.import_module("second_eyes").Second
    before = fingerprint(folder, second)
    assert fingerprint(folder, second) == before
    (folder / "first_eyes.py").write_text(f"{code}    # with other rows\n")
    assert fingerprint(folder, second) != before
    del sys.modules["first_eyes"], sys.modules["second_eyes"]


def test_an_add_on_without_a_source_is_another_each_time(folder: Path) -> None:
    names = {"VisionAddOn": VisionAddOn, "__name__": "nowhere"}
    exec("class Typed(VisionAddOn): pass", names)
    assert fingerprint(folder, names["Typed"]) != fingerprint(folder, names["Typed"])
