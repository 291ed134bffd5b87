"""Names of tensors: derived buffers are ignored, all else that nothing uses is refused."""

import re
import shutil
from pathlib import Path

import mlx.core as mx
import pytest

pytest.importorskip("torch")

from support import moxin_checkpoint as moxin
from support import tiny
from support.families import FAMILIES_IN_TURN

from model_kit import load_model_kit
from vision_add_ons.errors import UnexpectedWeight
from vision_add_ons.testing import write_tokenizer, written
from vision_add_ons.testing.folders import tensors_of
from vision_add_ons.weights import DERIVED, parameters


@pytest.mark.parametrize(
    ("name", "derived"),
    [
        ("inv_freq", True),
        ("rotary_emb.inv_freq", True),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", True),
        ("visual.rotary_pos_emb.inv_freq", True),
        ("model.rotary_emb.sliding_attention_inv_freq", True),
        ("model.rotary_emb.original_inv_freq", True),
        ("model.layers.0.self_attn.rotary_emb.cos_cached", True),
        ("model.layers.0.self_attn.rotary_emb.sin_cached", True),
        ("embeddings.position_ids", True),
        ("model.myinv_freq", False),
        ("model.inv_freq.weight", False),
        ("model.inv_freq_scale", False),
        ("model.relative_position_ids", False),
        ("model.rotary_emb.weight", False),
    ],
)
def test_which_buffers_are_derived(name: str, derived: bool) -> None:
    assert bool(DERIVED.fullmatch(name)) == derived


def with_tensors(folder: Path, target: Path, names: list[str]) -> Path:
    shutil.copytree(folder, target)
    for file in target.glob("*.safetensors*"):
        file.unlink()
    more = {name: mx.ones((4,)) for name in names}
    mx.save_safetensors(str(target / "model.safetensors"), {**tensors_of(folder), **more})
    return target


def in_each_part(folder: Path, end: str) -> list[str]:
    """A name at the top and beside the tensors of each part, by their first three names."""
    parts = {".".join(name.split(".")[:3]) for name in tensors_of(folder)}
    return [end, *(f"{part}.{end}" for part in sorted(parts))]


def checkpoint(name: str, folder: Path) -> Path:
    if name == "text":
        return tiny.save_of_few_words(tiny.of_few_words(1), folder)
    if name == "moxin":
        tensors = moxin.random_parts(1).named(moxin.FORMS["hf"])
        moxin.write(folder, tensors, moxin.config())
        write_tokenizer(folder)
        return folder
    return written(next(f for f in FAMILIES_IN_TURN if f.name == name)(1), folder)


@pytest.mark.whole
@pytest.mark.parametrize("name", ["text", "moxin", *(f.name for f in FAMILIES_IN_TURN)])
def test_derived_buffers_are_ignored_wherever_they_stand(name: str, tmp_path: Path) -> None:
    plain = checkpoint(name, tmp_path / "plain")
    names = in_each_part(plain, "rotary_emb.inv_freq")
    more = with_tensors(plain, tmp_path / "more", names)
    kits = [load_model_kit(folder) for folder in (plain, more)]
    ours, theirs = (parameters(kit.text_model) for kit in kits if kit.text_model is not None)
    assert ours.keys() == theirs.keys()
    assert all(mx.array_equal(ours[name], theirs[name]) for name in ours)
    for other in names[0].replace("inv_freq", "weight"), names[-1].replace("inv_freq", "freq"):
        wrong = with_tensors(plain, tmp_path / other, [other])
        with pytest.raises(UnexpectedWeight, match=re.escape(other)):
            load_model_kit(wrong)
