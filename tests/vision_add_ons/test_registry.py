"""Which add-on serves which model type, built in or from an installed package."""

import sys
from pathlib import Path

import pytest

from vision_add_ons.moxin import MoxinAddOn
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
    assert all(find_add_on(t) is not None and t in find_add_on(t).model_types for t in registered())


def test_an_installed_package_adds_a_type(site: Path) -> None:
    install(site, "shiny_eyes", "shiny = shiny_eyes:Eyes")
    assert registered()["shiny"] == "shiny_eyes:Eyes"
    assert "shiny_eyes" not in sys.modules  # nothing loads before a checkpoint needs it
    assert find_add_on("shiny").__module__ == "shiny_eyes"


def test_a_second_claim_names_both(site: Path) -> None:
    install(site, "rival_eyes", "prismatic = rival_eyes:Eyes")
    with pytest.raises(AddOnConflict, match=r"vision_add_ons\.moxin:MoxinAddOn.*rival_eyes:Eyes"):
        registered()
