"""Whose fault it is that a checkpoint does not load: a half's, an add-on's, a decoder's."""

import json
import traceback
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

pytest.importorskip("torch")

from mlx_lm import convert
from support import tiny
from support.families import FAMILIES_IN_TURN
from support.gemma3_reference import Gemma3Reference
from support.gemma3n_reference import Gemma3nReference
from support.lfm2_vl_reference import Lfm2VLReference
from support.mistral3_reference import Mistral3Reference
from support.pixtral_reference import PixtralReference
from support.qwen2_5_vl_reference import Qwen25VLReference
from support.qwen2_vl_reference import Qwen2VLReference
from support.qwen3_5_reference import Qwen35MoeReference, Qwen35Reference
from support.qwen3_vl_reference import Qwen3VLMoeReference, Qwen3VLReference
from transformers import Olmo2Config, Olmo2ForCausalLM

from engine import GenerationOptions, load
from engine.cli import main
from model_kit import inspect_checkpoint, load_model_kit
from model_kit.names import decoder_name
from vision_add_ons.base import VisionAddOn
from vision_add_ons.errors import (
    AddOnError,
    BrokenConfig,
    MissingWeight,
    UnknownModelType,
    UnsupportedCheckpoint,
)
from vision_add_ons.gemma3 import Gemma3AddOn
from vision_add_ons.registry import find_add_on
from vision_add_ons.testing import BOS, VOCAB, WORDS, written
from vision_add_ons.testing.folders import tensors_of

# --- text halves ------------------------------------------------------------------------------

HALF = r"text half only.*decoder_only=True.*--decoder-only"
CONVERTED = {
    "gemma3": (Gemma3Reference, "transformers 4"),
    "gemma3n": (Gemma3nReference, "transformers 4"),
    "lfm2-vl": (Lfm2VLReference, "mlx-vlm"),
    "llava": (PixtralReference, "transformers 5"),
    "pixtral": (PixtralReference, "mlx-vlm"),
    "mistral3": (Mistral3Reference, "transformers 5"),
    "qwen2_vl": (Qwen2VLReference, "transformers 4"),
    "qwen2_5_vl": (Qwen25VLReference, "transformers 4"),
    "qwen3_5": (Qwen35Reference, "transformers 4"),
    "qwen3_5_moe": (Qwen35MoeReference, "transformers 4"),
    "qwen3_vl": (Qwen3VLReference, "transformers 4"),
    "qwen3_vl_moe": (Qwen3VLMoeReference, "transformers 4"),
}


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """By model type, a whole checkpoint and what `mlx_lm.convert` leaves of it."""
    made = {}
    for name, (reference, dialect) in CONVERTED.items():
        place = tmp_path_factory.mktemp(name)
        whole = written(reference(1), place / "whole", dialect)
        tiny.edit_config(whole, vocab_size=VOCAB)  # published configs have it there too
        convert(str(whole), str(place / "half"), dtype="float32")
        made[name] = whole, place / "half"
    return made


@pytest.mark.parametrize("name", CONVERTED)
def test_a_text_half_by_mlx_lm_is_named_and_served(
    name: str, halves: dict[str, tuple[Path, Path]]
) -> None:
    whole, half = halves[name]
    assert json.loads((half / "config.json").read_text())["model_type"] == name
    for open_it in (load_model_kit, inspect_checkpoint):
        with pytest.raises(UnsupportedCheckpoint, match=HALF):
            open_it(half)
    logits = []
    for folder in (whole, half):
        text = load_model_kit(folder, decoder_only=True).text_model
        assert text is not None
        logits.append(text(mx.array([[BOS, *WORDS[:9]]])))
    assert mx.array_equal(*logits)


@pytest.mark.whole
@pytest.mark.parametrize("reference", FAMILIES_IN_TURN, ids=lambda r: r.name)
def test_a_folder_without_the_vision_half_is_named(reference: Any, tmp_path: Path) -> None:
    """Whether or not its config tells of one; not one of which a part is missing."""
    folder = written(reference(1), tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    add_on = find_add_on(config["model_type"], config["vision_config"].get("model_type"))
    assert add_on is not None
    tensors = tensors_of(folder)
    mx.eval(tensors)  # before their file is written anew
    names = [n for n in tensors if decoder_name(n, add_on.decoder_prefixes) is None]
    decoder = {n: tensor for n, tensor in tensors.items() if n not in names}
    file = str(folder / "model.safetensors")
    mx.save_safetensors(file, decoder)
    with pytest.raises(UnsupportedCheckpoint, match=HALF):
        load_model_kit(folder)
    mx.save_safetensors(file, {**decoder, "rotary_emb.inv_freq": mx.ones((4,))})
    with pytest.raises(UnsupportedCheckpoint, match=HALF):
        load_model_kit(folder)
    mx.save_safetensors(file, {**decoder, names[0]: tensors[names[0]]})
    with pytest.raises(MissingWeight):
        load_model_kit(folder)
    mx.save_safetensors(file, decoder)
    assert load_model_kit(folder, decoder_only=True).add_on is None
    tiny.edit_config(folder, remove=("vision_config",))
    with pytest.raises(UnsupportedCheckpoint, match=HALF):
        load_model_kit(folder)
    with load(folder, decoder_only=True) as engine:
        answer = engine.generate(
            [BOS, *WORDS[:2]], options=GenerationOptions(max_tokens=3)
        ).result()
        assert answer.error is None


def test_the_command_line_offers_the_flag_and_has_it(
    halves: dict[str, tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, half = halves["gemma3"]
    smaller = tmp_path / "smaller"
    commands = [["inspect", str(half)], ["quantize", str(half), str(smaller), "--group-size", "32"]]
    asking = ["generate", "--raw", "--prompt", "w9 w10", "--max-tokens", "2", "--model", str(half)]
    for command in (*commands, asking):
        assert main(command) == 2
        told = capsys.readouterr().err
        assert told.startswith("sightline: this checkpoint holds the text half only")
        assert "--decoder-only" in told
        assert main([*command, "--decoder-only"]) == 0
        capsys.readouterr()
    assert load_model_kit(smaller).config.model_type == "gemma3_text"


def test_a_quantized_text_half_is_served(
    halves: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    whole, _ = halves["mistral3"]
    half = tmp_path / "half"
    convert(str(whole), str(half), quantize=True, q_group_size=32, q_bits=4)
    with pytest.raises(UnsupportedCheckpoint, match=HALF):
        load_model_kit(half)
    assert load_model_kit(half, decoder_only=True).config.quantization is not None


@pytest.mark.parametrize("tensors", [{}, {"language_model.model.norm.weight": mx.ones((4,))}])
def test_no_other_folder_is_taken_for_one(tensors: dict[str, mx.array], tmp_path: Path) -> None:
    folder = tiny.save_of_few_words(tiny.of_few_words(1), tmp_path / "tiny")
    tiny.edit_config(folder, model_type="mistrall")
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    with pytest.raises(UnknownModelType, match="did you mean mistral"):
        load_model_kit(folder)


def test_decoder_only_is_offered_only_where_it_works(tmp_path: Path) -> None:
    folder = tiny.save_of_few_words(tiny.of_few_words(1), tmp_path / "tiny")
    tiny.edit_config(folder, model_type="kosmos", vision_config={})
    with pytest.raises(UnsupportedCheckpoint, match="no vision add-on serves") as caught:
        load_model_kit(folder)
    assert "decoder_only" not in str(caught.value)


# --- add-ons that fail ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(Gemma3Reference(1), tmp_path_factory.mktemp("gemma3"))


class FailsToOpen(Gemma3AddOn):
    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        super().__init__(folder, config)
        self.more = config["nobody_wrote_this"]


class FailsToPrepare(Gemma3AddOn):
    def prepare_decoder(self, text_model: Any) -> None:
        raise TypeError("no such layer\nhere")


class FailsToTell(Gemma3AddOn):
    def picture_limits(self) -> list[str]:
        return [f"{1 / 0}"]


class FailsAtTheConfig(Gemma3AddOn):
    @classmethod
    def decoder_config(cls, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        raise AttributeError("no such half")


class FailsAtTheTemplate(Gemma3AddOn):
    @classmethod
    def default_chat_template(cls, config: dict[str, Any], folder: Path) -> str:
        raise IndexError("no such template")


FAILING = {
    FailsToOpen: (KeyError, "nobody_wrote_this"),
    FailsToPrepare: (TypeError, "no such layer here"),
    FailsToTell: (ZeroDivisionError, "division by zero"),
    FailsAtTheConfig: (AttributeError, "no such half"),
    FailsAtTheTemplate: (IndexError, "no such template"),
}


@pytest.mark.parametrize("add_on", FAILING, ids=lambda a: a.__name__)
def test_what_an_add_ons_own_code_trips_over_is_told_as_that(
    add_on: type[VisionAddOn], gemma3: Path
) -> None:
    kind, said = FAILING[add_on]
    with pytest.raises(AddOnError) as caught:
        load_model_kit(gemma3, add_on=add_on)
    told = str(caught.value)
    assert told.startswith(f"the add-on {__name__}:{add_on.__name__} failed: {kind.__name__}: ")
    assert said in told
    assert "\n" not in told
    cause = caught.value.__cause__
    assert isinstance(cause, kind)
    frames = traceback.extract_tb(cause.__traceback__)
    assert Path(__file__).name in {Path(frame.filename).name for frame in frames}


class Refuses(Gemma3AddOn):
    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        raise BrokenConfig("nobody_knows must be known")


def test_its_own_refusals_stay_as_they_are(gemma3: Path) -> None:
    with pytest.raises(BrokenConfig, match=r"^nobody_knows must be known$"):
        load_model_kit(gemma3, add_on=Refuses)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that brings an add-on for `kosmos`, whose module cannot be imported."""
    (tmp_path / "kosmos_add_on.py").write_text("import nobody_installed_this\n")
    metadata = tmp_path / "kosmos_add_on-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kosmos-add-on\nVersion: 1\n")
    points = "[sightline.vision_add_ons]\nkosmos = kosmos_add_on:KosmosAddOn\n"
    (metadata / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_an_add_on_that_cannot_be_imported(package: Path) -> None:
    folder = tiny.save_of_few_words(tiny.of_few_words(1), package / "tiny")
    tiny.edit_config(folder, model_type="kosmos")
    with pytest.raises(AddOnError, match=r"kosmos_add_on:KosmosAddOn .*nobody_installed_this"):
        load_model_kit(folder)


# --- a decoder that takes no rows -------------------------------------------------------------


class OnOlmo(Gemma3AddOn):
    """A family before a decoder whose class in mlx-lm takes token ids alone."""

    model_types = ("olmo2",)
    decoder_prefixes = {"": ""}  # noqa: RUF012

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        raise AssertionError("nobody needs to ask")

    @classmethod
    def decoder_config(cls, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        return dict(config), []


def test_a_decoder_that_takes_no_rows_is_refused_at_load(tmp_path: Path) -> None:
    sizes = {**tiny.SIZES, "vocab_size": VOCAB}
    del sizes["sliding_window"], sizes["head_dim"]
    model = tiny.randomize(Olmo2ForCausalLM(Olmo2Config(**sizes)), 1)
    folder = tiny.save_of_few_words(model, tmp_path / "olmo")
    told = r"olmo2 takes no input_embeddings.*decoder_only=True.*--decoder-only"
    with pytest.raises(UnsupportedCheckpoint, match=told):
        load_model_kit(folder, add_on=OnOlmo)
    kit = load_model_kit(folder, add_on=OnOlmo, decoder_only=True)
    assert kit.text_model is not None
    assert kit.text_model(mx.array([[BOS, *WORDS[:3]]])).shape == (1, 4, VOCAB)
