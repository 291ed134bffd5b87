"""Which add-on serves which model type, built in or from an installed package."""

import json
import sys
from pathlib import Path

import pytest

from model_kit.config import read_config
from vision_add_ons.errors import UnsupportedCheckpoint
from vision_add_ons.moxin import MoxinAddOn
from vision_add_ons.pixtral import PixtralAddOn
from vision_add_ons.registry import AddOnConflict, find_add_on, import_path, registered


def install(folder: Path, name: str, entry: str, code: str = "class Eyes: pass\n") -> None:
    """A package as pip would leave it: a module, and metadata with an entry point."""
    (folder / f"{name}.py").write_text(code)
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[sightline.vision_add_ons]\n{entry}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_built_in() -> None:
    assert find_add_on("prismatic") is MoxinAddOn
    assert find_add_on("moxin") is MoxinAddOn
    assert find_add_on("mistral") is None
    assert import_path(MoxinAddOn) == "vision_add_ons.moxin.add_on:MoxinAddOn"
    for key in registered():
        model_type, _, tower = key.partition(".")
        add_on = find_add_on(model_type, tower)
        assert add_on is not None
        assert model_type in add_on.model_types


def test_an_installed_package_adds_a_type(site: Path) -> None:
    install(site, "shiny_eyes", "shiny = shiny_eyes:Eyes")
    assert registered()["shiny"] == "shiny_eyes:Eyes"
    assert "shiny_eyes" not in sys.modules  # nothing loads before a checkpoint needs it
    assert find_add_on("shiny").__module__ == "shiny_eyes"


def test_a_second_claim_names_both(site: Path) -> None:
    install(site, "rival_eyes", "prismatic = rival_eyes:Eyes")
    with pytest.raises(AddOnConflict, match=r"vision_add_ons\.moxin:MoxinAddOn.*rival_eyes:Eyes"):
        registered()


def test_the_tower_decides_where_a_package_says_so(site: Path) -> None:
    assert find_add_on("llava") is find_add_on("llava", "clip_vision_model") is None
    install(site, "clip_eyes", "llava = clip_eyes:Eyes")
    assert find_add_on("llava").__module__ == "clip_eyes"
    assert find_add_on("llava", "clip_vision_model").__module__ == "clip_eyes"
    assert find_add_on("llava", "pixtral") is PixtralAddOn
    install(site, "rival_eyes", "llava.pixtral = rival_eyes:Eyes")
    with pytest.raises(AddOnConflict, match=r"'llava\.pixtral'.*PixtralAddOn.*rival_eyes:Eyes"):
        registered()


@pytest.mark.parametrize(
    "vision", [{"vision_config": {"model_type": "clip_vision_model"}}, {"vision_config": {}}, {}]
)
def test_what_no_add_on_serves_is_refused_by_its_tower(tmp_path: Path, vision: dict) -> None:
    config = {"model_type": "llava", "text_config": {"model_type": "llama"}, **vision}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tower = vision.get("vision_config", {}).get("model_type", "absent")
    named = rf"'llava' whose vision_config\.model_type is {tower} \(only pixtral\)"
    with pytest.raises(UnsupportedCheckpoint, match=f"{named}: install a package.* named 'llava'"):
        read_config(tmp_path)
    assert read_config(tmp_path, decoder_only=True).decoder_type == "llama"
