"""LFM2-VL where it differs from others: tiles, their tokens, and a decoder of two kinds of layers.

What every family holds is checked in tests/parity.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("torch")

from PIL import Image
from support.lfm2_vl_reference import Lfm2VLReference, image_processor_class
from support.planted import Planting
from support.tiny import edit_config

from model_kit.config import read_config
from model_kit.kit import inspect_checkpoint, load_model_kit
from vision_add_ons.base import Picture
from vision_add_ons.errors import ImageError
from vision_add_ons.lfm2_vl import Lfm2VLAddOn
from vision_add_ons.lfm2_vl.views import Layout, Views
from vision_add_ons.pixels import Pixels
from vision_add_ons.registry import find_add_on
from vision_add_ons.testing import (
    TOLERANCE,
    WORDS,
    Photo,
    processor_checks,
    prompt_checks,
    relative_error,
    row_checks,
    written,
)

PATCH, FACTOR = 16, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(Lfm2VLReference(1), tmp_path_factory.mktemp("lfm2_vl"))


def add_on_of(folder: Path) -> Lfm2VLAddOn:
    return Lfm2VLAddOn(folder, json.loads((folder / "config.json").read_text()))


@pytest.mark.parametrize("model_type", ["lfm2_vl", "lfm2-vl"])
def test_registry_knows_it(model_type: str) -> None:
    assert find_add_on(model_type, "siglip2_vision_model") is Lfm2VLAddOn


@pytest.mark.parametrize(
    "changes",
    [
        {"projector_use_layernorm": False},
        {"projector_bias": False},
        {"vision": {"vision_use_head": True}},
        {"vision": {"num_patches": 1}},
        {"text": {"conv_bias": True, "conv_L_cache": 4, "block_auto_adjust_ff_dim": False}},
    ],
    ids=str,
)
def test_variants(changes: dict[str, Any], tmp_path: Path, seed: int) -> None:
    reference = Lfm2VLReference(seed, **changes)
    folder = written(reference, tmp_path)
    photo = Photo(44, 28, seed)
    rows = np.array(add_on_of(folder).encode_image(photo))
    text = load_model_kit(folder).text_model
    assert text is not None
    tokens = list(WORDS[:40])
    logits = np.array(text(mx.array([tokens]))[0])
    errors = [
        relative_error(rows, reference.rows(photo.image)),
        relative_error(logits, reference.logits(tokens, [], [])),
    ]
    print(f"{changes}: {max(errors):.1e}")
    assert max(errors) <= TOLERANCE


def test_a_norm_that_was_made_up_is_ignored(tmp_path: Path, seed: int) -> None:
    """As conversions of LFM2.5 hold it, and transformers ignores it."""
    reference = Lfm2VLReference(seed)
    folder = written(reference, tmp_path)
    edit_config(folder, projector_use_layernorm=False)
    reference.model.model.multi_modal_projector.use_layer_norm = False
    photo = Photo(20, 30, seed)
    rows = np.array(add_on_of(folder).encode_image(photo))
    assert relative_error(rows, reference.rows(photo.image)) <= TOLERANCE


# --- views ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_tiles": 3}, {"min_tiles": 4, "max_tiles": 12, "tile_size": 256}],
    ids=["as published", "few", "many small"],
)
def test_layouts_are_the_processors(settings: dict[str, Any], tmp_path: Path, seed: int) -> None:
    """Of sizes at random, and of those between two shapes of tiles that are as near."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    views = Views.read(tmp_path, PATCH, FACTOR)
    theirs = image_processor_class()(**settings)
    names = ("min_tiles", "max_tiles", "tile_size")
    tiling = {name: getattr(theirs, name) for name in names}
    fitting = {
        name: getattr(theirs, name)
        for name in (
            "downsample_factor",
            "min_image_tokens",
            "max_image_tokens",
            "encoder_patch_size",
        )
    }
    rng = np.random.default_rng(seed)
    sizes = [tuple(map(int, 2 ** rng.uniform(4, 12, 2))) for _ in range(1000)]
    sizes += [(5 * n, 4 * n) for n in range(150, 600, 7)] + [(5 * n, 3 * n) for n in range(99, 600)]
    tiled = 0
    for width, height in sizes:
        large = theirs._is_image_too_large(
            height=height,
            width=width,
            max_pixels_tolerance=theirs.max_pixels_tolerance,
            **{name: value for name, value in fitting.items() if name != "min_image_tokens"},
        )
        columns, lines = theirs._get_grid_layout(height, width, **tiling)[:2] if large else (0, 0)
        whole = theirs.smart_resize(height=height, width=width, **fitting)
        if whole[0] * whole[1] <= views.room:
            assert views.layout((width, height)) == Layout(lines, columns, whole)
        tiled += large
    assert 100 < tiled < len(sizes) - 100


def test_a_picture_too_thin_is_refused(folder: Path) -> None:
    add_on = add_on_of(folder)
    for size in ((3, 570), (300, 20)):
        with pytest.raises(ImageError, match=r"570|300x20 pixels is too thin: .* crop it first"):
            add_on.row_count(Photo(*size, 1))
        with pytest.raises(ImageError, match="too thin"):
            add_on.tower_bytes(size)
        with pytest.raises((RuntimeError, ValueError)):
            Lfm2VLReference(1).rows(Image.new("RGB", size))


def test_memory_grows_with_the_rows_alone(folder: Path) -> None:
    """Tiles are encoded one after the other."""
    add_on = add_on_of(folder)
    one, four = (add_on.tower_bytes(size) for size in ((16, 32), (64, 64)))
    assert four < one + 2 * 4 * 64 * sum(add_on.row_counts((64, 64)))


def test_load_report_states_the_limits(folder: Path) -> None:
    report = "\n".join(inspect_checkpoint(folder).lines())
    assert "a row for each 8 x 8 pixels, 4 to 8 rows for a picture in one view" in report
    assert "up to 4 tiles of 16 x 16 pixels, 4 rows each, and one view" in report


# --- the first published form -------------------------------------------------------------------

LFM2_VL_450M = {
    "do_image_splitting": True,
    "downsample_factor": 2,
    "encoder_patch_size": 16,
    "image_token_index": 396,
    "max_image_tokens": 256,
    "max_num_patches": 1024,
    "max_pixels_tolerance": 2.0,
    "max_tiles": 10,
    "min_image_tokens": 64,
    "min_tiles": 2,
    "model_type": "lfm2-vl",
    "projector_bias": True,
    "projector_hidden_act": "gelu",
    "projector_hidden_size": 2560,
    "text_config": {
        "block_auto_adjust_ff_dim": True,
        "block_dim": 1024,
        "block_ff_dim": 6656,
        "block_ffn_dim_multiplier": 1.0,
        "block_mlp_init_scale": 1.0,
        "block_multiple_of": 256,
        "block_norm_eps": 1e-05,
        "block_out_init_scale": 1.0,
        "block_use_swiglu": True,
        "block_use_xavier_init": True,
        "conv_L_cache": 3,
        "conv_bias": False,
        "conv_dim": 1024,
        "conv_dim_out": 1024,
        "conv_use_xavier_init": True,
        "eos_token_id": 7,
        "hidden_size": 1024,
        "initializer_range": 0.02,
        "intermediate_size": 6656,
        "layer_types": ["conv", "conv", "full_attention", "conv"],
        "max_position_embeddings": 128000,
        "model_type": "lfm2",
        "norm_eps": 1e-05,
        "num_attention_heads": 16,
        "num_heads": 16,
        "num_hidden_layers": 4,
        "num_key_value_heads": 8,
        "rope_theta": 1000000.0,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_pos_enc": True,
        "vocab_size": 65536,
    },
    "tile_size": 512,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.55.0",
    "use_image_special_tokens": True,
    "use_thumbnail": False,
    "vision_config": {
        "attention_dropout": 0.0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-06,
        "model_type": "siglip2_vision_model",
        "num_attention_heads": 12,
        "num_channels": 3,
        "num_hidden_layers": 12,
        "num_patches": 256,
        "patch_size": 16,
        "torch_dtype": "bfloat16",
        "vision_use_head": False,
    },
    "vision_feature_layer": -1,
}


def test_a_published_config(tmp_path: Path) -> None:
    """Read as transformers reads it: the width of the feed-forward layers, too."""
    (tmp_path / "config.json").write_text(json.dumps(LFM2_VL_450M))
    config = read_config(tmp_path)
    assert config.add_on is Lfm2VLAddOn
    assert config.decoder_type == "lfm2"
    assert config.eos_token_ids == {7}
    decoder = config.decoder
    assert (decoder["block_dim"], decoder["block_ff_dim"]) == (1024, 6656)
    assert decoder["rope_parameters"]["rope_theta"] == 1e6
    assert decoder["layer_types"] == ["conv", "conv", "full_attention", "conv"]


def test_settings_of_the_first_checkpoints(tmp_path: Path) -> None:
    """Tiling stands beside the tokens' settings; else only what is beside the pixels' counts."""
    tiling = {"use_thumbnail": False, "max_tiles": 6, "use_image_special_tokens": True}
    (tmp_path / "processor_config.json").write_text(json.dumps(tiling))
    for kind, expected in (("Siglip2ImageProcessor", 6), ("Lfm2VlImageProcessorFast", 10)):
        saved = {"image_processor_type": kind, "do_resize": False, "patch_size": 16}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved))
        views = Views.read(tmp_path, PATCH, FACTOR)
        assert views.tiles == (2, expected)
        assert views.thumbnail == (expected == 10)


# --- what the kit catches -----------------------------------------------------------------------


class TilesByColumns(Lfm2VLAddOn):
    """Tiles in the wrong order: down before across."""

    def encode_image(self, picture: Picture) -> mx.array:
        rows, counts = super().encode_image(picture), self.row_counts(picture.size)
        layout = self.views.layout(picture.size)
        if not layout.lines:
            return rows
        each = counts[0]
        tiles = mx.unflatten(rows[: each * len(counts[:-1])], 0, (layout.lines, -1, each))
        return mx.concatenate(
            [tiles.swapaxes(0, 1).reshape(-1, rows.shape[1]), rows[-counts[-1] :]]
        )


class NoThumbnailToken(Lfm2VLAddOn):
    def picture_tokens(self, picture: Picture) -> list[int]:
        return [t for t in super().picture_tokens(picture) if t != self.thumbnail_id]


class PillowsPixels(Lfm2VLAddOn):
    """Resampled by Pillow, which differs in few values, and by one."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        super().__init__(folder, config)
        ours = self.views.pixels
        pixels = Pixels(ours.resample, ours.factor, ours.mean, ours.std)
        self.views = replace(self.views, pixels=pixels)  # type: ignore[arg-type]


class RoundedDown(Lfm2VLAddOn):
    """Sides are cut to whole rows, where the processor rounds them."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        super().__init__(folder, config)
        self.views = _RoundedDown(**vars(self.views))


class _RoundedDown(Views):
    def _rounded(self, side: int) -> int:
        return side // self.cell * self.cell


class PatchesByColumns(Lfm2VLAddOn):
    """The patches of a square in the order down, across."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        super().__init__(folder, config)
        project = self.projector
        self.projector = lambda x: project(x.swapaxes(0, 1))  # type: ignore[assignment]
        self.projector.factor = project.factor


@pytest.mark.parametrize(
    ("faulty", "check", "saying"),
    [
        (TilesByColumns, row_checks.check_rows, "rows of a picture of .* are off by"),
        (PatchesByColumns, row_checks.check_rows, "rows of a picture of .* are off by"),
        (NoThumbnailToken, prompt_checks.check_places, "expand_prompt makes"),
        (RoundedDown, row_checks.check_row_counts, "stands in the prompt as"),
        (PillowsPixels, processor_checks.check_pixels, "are not the processor's"),
    ],
)
def test_the_kit_catches(planting: Planting, faulty: Any, check: Any, saying: str) -> None:
    planting.caught(faulty, check, saying)
