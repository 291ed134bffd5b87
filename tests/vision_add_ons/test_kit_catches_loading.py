"""The conformance kit catches faults in what of a checkpoint counts, and what of it is refused."""

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

pytest.importorskip("torch")

from PIL import Image
from support.planted import Planting

from vision_add_ons.gemma3 import Gemma3AddOn
from vision_add_ons.pixels import HALF_MEAN, HALF_STD, Pixels, read_processor_config
from vision_add_ons.pixtral import PixtralAddOn
from vision_add_ons.qwen2_vl import Qwen2VLAddOn
from vision_add_ons.testing import config_checks, form_checks, processor_checks, weight_checks
from vision_add_ons.testing.folders import tensors_of

# --- weights ----------------------------------------------------------------------------------


def tidied(folder: Path, tensors: Mapping[str, mx.array]) -> Path:
    """The folder with other tensors, beside it."""
    other = folder.with_name(folder.name + "-tidied")
    other.mkdir(exist_ok=True)
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (other / file.name).write_bytes(file.read_bytes())
    mx.save_safetensors(str(other / "model.safetensors"), dict(tensors))
    return other


class Lenient(Gemma3AddOn):
    """Makes of any checkpoint one that loads, by the shapes of one that did."""

    shapes: dict[str, Any]
    drops = fills = crops = False

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        tensors = tensors_of(folder)
        known = type(self).shapes
        if self.drops:
            tensors = {name: array for name, array in tensors.items() if name in known}
        if self.fills:
            tensors = {**{name: mx.zeros(shape) for name, shape in known.items()}, **tensors}
        if self.crops:
            for name, shape in known.items():
                if name in tensors and tensors[name].shape != shape:
                    tensors[name] = tensors[name][..., : shape[-1]]
        super().__init__(tidied(folder, tensors), config)


@pytest.mark.parametrize(
    ("fault", "check", "saying"),
    [
        ("drops", weight_checks.check_surplus_weights, "is one too many, and the add-on loads"),
        ("fills", weight_checks.check_missing_weights, "is missing, and the add-on loads"),
        ("fills", weight_checks.check_no_vision_half, "without any weight of the vision half"),
        ("crops", weight_checks.check_wrong_shapes, r"instead of .*, and the add-on loads"),
    ],
)
def test_weights(planting: Planting, fault: str, check: Any, saying: str) -> None:
    shapes = {n: a.shape for n, a in tensors_of(planting.kit("gemma3").folder).items()}
    lenient = type("Lenient", (Lenient,), {"shapes": shapes, fault: True})
    planting.caught(lenient, check, saying)


class TorchKernelsOnly(Gemma3AddOn):
    """Turns the kernel of a convolution though it may be turned already."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        super().__init__(folder, config)
        kernel = self.tower.embeddings.patch_embedding
        if any(a.ndim == 4 and a.shape[-1] == 3 for a in tensors_of(folder).values()):
            kernel.weight = kernel.weight.swapaxes(1, 2)


def test_dialects(planting: Planting) -> None:
    planting.caught(TorchKernelsOnly, form_checks.check_dialects, "dialect mlx-vlm")


class TowerNotDequantized(Gemma3AddOn):
    """A quantized tower's scales are somewhat off."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        super().__init__(folder, config)
        layer = self.tower.encoder.layers[0].mlp.fc1
        if "scales" in layer:
            layer.scales = layer.scales * 1.01


def test_quantized_towers(planting: Planting) -> None:
    planting.caught(TowerNotDequantized, form_checks.check_quantized, "quantized", True)


# --- config.json ------------------------------------------------------------------------------


class AnyActivation(Gemma3AddOn):
    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        config = copy.deepcopy(config)
        config["vision_config"]["hidden_act"] = "gelu_pytorch_tanh"
        super().__init__(folder, config)


class AnyTower(PixtralAddOn):
    @classmethod
    def resolve(cls, config: dict[str, Any]) -> dict[str, Any]:
        vision = {**config["vision_config"], "model_type": "pixtral"}
        return super().resolve({**config, "vision_config": vision})


class AnyChannels(Gemma3AddOn):
    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        config = copy.deepcopy(config)
        config["vision_config"]["num_channels"] = 3
        super().__init__(folder, config)


class UntypedRefusal(Gemma3AddOn):
    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        if config["vision_config"].get("hidden_act") != "gelu_pytorch_tanh":
            raise KeyError(config["vision_config"]["hidden_act"])
        super().__init__(folder, config)


class FailsAtRefusedValues(Gemma3AddOn):
    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        if config.get("mm_tokens_per_image") == 15:
            raise KeyError("mm_tokens_per_image")
        super().__init__(folder, config)


class ChangesTheConfig(Gemma3AddOn):
    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        config["vision_config"]["vision_use_head"] = True
        super().__init__(folder, config)


@pytest.mark.parametrize(
    ("faulty", "check", "saying"),
    [
        (AnyActivation, config_checks.check_unknown_values, "hidden_act = .* is accepted"),
        (AnyTower, config_checks.check_unknown_values, "model_type = .* is accepted"),
        (AnyChannels, config_checks.check_refused_values, "num_channels = 1 is accepted"),
        (UntypedRefusal, config_checks.check_unknown_values, "not KeyError"),
        (
            FailsAtRefusedValues,
            config_checks.check_refused_values,
            "= 15 must .*failed: KeyError",
        ),
        (ChangesTheConfig, config_checks.check_the_config_is_left_alone, "copy it first"),
    ],
)
def test_config(planting: Planting, faulty: Any, check: Any, saying: str) -> None:
    planting.caught(faulty, check, saying)


# --- the processor ----------------------------------------------------------------------------


class WrongMean(Qwen2VLAddOn):
    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        other = {"image_mean": [0.5, 0.5, 0.5]}
        file = folder / "preprocessor_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | other))
        super().__init__(folder, config)


class OwnMeans(Gemma3AddOn):
    """The defaults, whatever is saved."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        super().__init__(folder, config)
        self.pixels = Pixels(Image.Resampling.BILINEAR, 1 / 255, HALF_MEAN, HALF_STD)


class AnotherResampling(Gemma3AddOn):
    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        super().__init__(folder, config)
        values = vars(self.pixels) | {"resample": Image.Resampling.BICUBIC}
        self.pixels = Pixels(**values)


class AnotherDefault(Gemma3AddOn):
    """Right wherever the settings say how to resample, as all saved ones do."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        super().__init__(folder, config)
        if "resample" not in read_processor_config(folder):
            self.pixels = replace(self.pixels, resample=Image.Resampling.BICUBIC)


class SizeNeedNotBeSaved(PixtralAddOn):
    """The tower's own, though the processor's is larger."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        super().__init__(folder, config)
        if "size" not in read_processor_config(folder):
            self.limit = (config["vision_config"]["image_size"],) * 2


class TextsMarkPictures(Gemma3AddOn):
    image_marks = ()


class TextAsItStands(Gemma3AddOn):
    """Without what the processor puts around a picture."""

    def prepare_text(self, text: str) -> str:
        return text.replace("<start_of_image>", "<start_of_image><image_soft_token><end_of_image>")


@pytest.mark.parametrize(
    ("faulty", "check", "saying"),
    [
        (WrongMean, processor_checks.check_pixels, "are not the processor's"),
        (AnotherResampling, processor_checks.check_pixels, "look at the resampling"),
        (AnotherDefault, processor_checks.check_absent_settings, "config.json has no resample"),
        (SizeNeedNotBeSaved, processor_checks.check_absent_settings, "config.json has no size"),
        (OwnMeans, processor_checks.check_saved_means, "does not count"),
        (TextsMarkPictures, processor_checks.check_texts_mark_nothing, "image_marks"),
        (TextAsItStands, processor_checks.check_prompts, "look at the chat template"),
    ],
)
def test_processor(planting: Planting, faulty: Any, check: Any, saying: str) -> None:
    planting.caught(faulty, check, saying)
