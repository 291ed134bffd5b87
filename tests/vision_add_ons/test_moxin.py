"""Moxin: towers by the sizes of their tensors, and two ways of preprocessing.

What every family holds is checked in tests/parity.
"""

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from support import moxin_checkpoint as checkpoint
from support.moxin_checkpoint import HF, IMAGE_SIZE, PATCHES, SIGLIP, TEXT, TowerShape

from vision_add_ons.errors import (
    BrokenConfig,
    ImageError,
    UnexpectedShape,
    UnexpectedWeight,
    UnsupportedCheckpoint,
)
from vision_add_ons.moxin import MoxinAddOn, ViTConfig, ViTEncoder, normalize_dino, normalize_siglip
from vision_add_ons.moxin.preprocessing import PixelRecipe, read_recipes
from vision_add_ons.registry import find_add_on
from vision_add_ons.testing import Photo


@pytest.fixture(scope="module")
def parts():
    return checkpoint.random_parts(seed=7)


@pytest.fixture
def load(parts, tmp_path):
    """Write a checkpoint, after changes to its tensors and its config, and load the add-on."""

    def load(change_tensors=None, form=HF, drop=(), **changes):
        tensors = parts.named(form)
        if change_tensors:
            change_tensors(tensors)
        config = {k: v for k, v in {**checkpoint.config(), **changes}.items() if k not in drop}
        return MoxinAddOn(checkpoint.write(tmp_path / "moxin", tensors, config), config)

    return load


def array(x) -> np.ndarray:
    return np.array(x.astype(mx.float32))


# --- loading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["moxin", "prismatic"])
def test_registry_knows_it(model_type):
    assert find_add_on(model_type) is MoxinAddOn


def test_all_forms_give_the_same_rows(load):
    photo = Photo(90, 60, 1)
    rows = [array(load(form=form).encode_image(photo)) for form in checkpoint.FORMS.values()]
    assert rows[0].shape == (PATCHES, TEXT["hidden_size"])
    assert np.array_equal(rows[0], rows[1])
    assert np.array_equal(rows[0], rows[2])


def test_sizes_come_from_the_tensors(load):
    add_on = load()
    assert add_on.dino.config == ViTConfig(
        48, 5, 3, 96, True, 4, True, image_size=IMAGE_SIZE, patch_size=14
    )
    assert add_on.siglip.config == ViTConfig(
        40, 4, 5, 92, False, 0, False, image_size=IMAGE_SIZE, patch_size=14
    )
    assert add_on.row_count(Photo(3, 4, 0)) == PATCHES


def test_last_block_and_final_norm_are_neither_kept_nor_needed(load):
    def spoil(tensors):
        for name in tensors:
            last = (f"{HF.dino}blocks.4.", f"{HF.siglip}blocks.3.", f"{HF.dino}norm")
            if name.startswith((*last, f"{HF.siglip}attn_pool")):
                tensors[name] = np.full((2, 2), np.nan, np.float32)

    assert len(load().dino.blocks) == 4
    photo = Photo(30, 30, 2)
    assert np.array_equal(array(load().encode_image(photo)), array(load(spoil).encode_image(photo)))


def test_both_layouts_of_positions(parts):
    """A class position of zero is the same model as none."""
    without = ViTConfig(48, 5, 3, 96, True, 4, True, image_size=IMAGE_SIZE)
    weights = {name: mx.array(tensor) for name, tensor in parts.dino.items()}
    weights = {n: w for n, w in weights.items() if not n.startswith(("norm", "blocks.4."))}
    pixels = mx.random.normal((1, IMAGE_SIZE, IMAGE_SIZE, 3), key=mx.random.key(0))
    rows = []
    for first in (None, 0.0, 0.1):
        config = replace(without, has_class_position=first is not None)
        positions = weights["pos_embed"]
        if first is not None:
            positions = mx.concatenate(
                [first * mx.arange(48.0).reshape(1, 1, 48), positions], axis=1
            )
        encoder = ViTEncoder(config)
        named = encoder.sanitize({**weights, "pos_embed": positions})
        rows.append(array(encoder.load_weights(list(named.items()))(pixels)))
    assert np.allclose(rows[0], rows[1], atol=1e-5)
    assert not np.allclose(rows[0], rows[2], atol=1e-2)


@pytest.mark.parametrize(
    "name",
    [
        "extra.weight",
        "vision_backbone.extra",
        f"{HF.dino}blocks.1.attn.gate",
        f"{HF.siglip}cls_token",
        "projector.fc4.weight",
    ],
)
def test_unexpected_weight_is_named(load, name):
    with pytest.raises(UnexpectedWeight, match=name):
        load(lambda tensors: tensors.update({name: np.zeros(3, np.float32)}))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (f"{HF.dino}patch_embed.proj.weight", (48, 14, 14, 3)),
        (f"{HF.dino}pos_embed", (1, PATCHES + 5, 48)),
        (f"{HF.dino}cls_token", (1, 48)),
        (f"{HF.dino}reg_token", (4, 48)),
        (f"{HF.siglip}pos_embed", (1, PATCHES + 1, 40)),
        (f"{HF.siglip}blocks.1.mlp.fc2.weight", (40, 96)),
        ("projector.fc1.weight", (352, 90)),
        ("projector.fc3.bias", (65,)),
    ],
)
def test_wrong_shape_is_named(load, name, shape):
    with pytest.raises(UnexpectedShape, match=name):
        load(lambda tensors: tensors.update({name: np.zeros(shape, np.float32)}))


def test_config_that_contradicts_the_tensors(load):
    with pytest.raises(UnexpectedShape, match="pos_embed"):
        load(image_sizes=[84, 84])
    with pytest.raises(UnexpectedShape, match="7 heads"):
        load(dino_num_heads=7)
    with pytest.raises(UnexpectedShape, match="projector"):
        load(text_config={**TEXT, "hidden_size": 60})


def test_heads_of_an_unpublished_size(load):
    with pytest.raises(UnsupportedCheckpoint, match="siglip_num_heads"):
        load(drop=("siglip_num_heads",))
    weights = {f"t.{n}": mx.array(t) for n, t in wide_tower().items()}
    assert ViTConfig.dinov2_large().fitted(weights, "t.", IMAGE_SIZE, None).num_heads == 2
    assert ViTConfig.dinov2_large().fitted(weights, "t.", IMAGE_SIZE, 8).num_heads == 8


def wide_tower(depth=2):
    shape = TowerShape(width=128, depth=depth, heads=2, mlp=16, registers=1, dino=True)
    return checkpoint.tower(shape, checkpoint.Random(0))


def test_one_block_is_too_few():
    weights = {n: mx.array(t) for n, t in wide_tower(depth=1).items()}
    with pytest.raises(UnsupportedCheckpoint, match="blocks"):
        ViTConfig.dinov2_large().fitted(weights, "", IMAGE_SIZE, None)


def test_published_width_means_the_published_architecture():
    """Blocks missing from the real tower are missing, not a smaller tower."""
    weights = {"patch_embed.proj.weight": mx.zeros((1024, 3, 14, 14))}
    weights["pos_embed"] = mx.zeros((1, 257, 1024))
    published = ViTConfig.dinov2_large()
    fitted = published.fitted(weights, "", 224, None)
    assert fitted == replace(published, has_class_position=True)


def test_towers_that_cut_other_patches(parts, tmp_path):
    tensors = parts.named(HF)
    other = checkpoint.tower(SIGLIP, checkpoint.Random(1), patches=49, patch=10)
    tensors |= {HF.siglip + name: tensor for name, tensor in other.items()}
    folder = checkpoint.write(tmp_path, tensors, checkpoint.config())
    with pytest.raises(UnsupportedCheckpoint, match="25 and 49"):
        MoxinAddOn(folder, checkpoint.config())


# --- the decoder's config ---------------------------------------------------------------------


def test_decoder_config_keeps_what_is_given():
    config, assumed = MoxinAddOn.decoder_config({"text_config": {**TEXT, "sliding_window": 32}})
    assert config == {**TEXT, "sliding_window": 32}
    assert assumed == []


@pytest.mark.parametrize("config", [{}, {"text_config": {"num_hidden_layers": 36}}])
def test_decoder_config_states_what_it_assumes(config):
    text, assumed = MoxinAddOn.decoder_config(config)
    assert text == {
        "model_type": "mistral",
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 32064,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
    assert len(assumed) == len(text) - len(config.get("text_config", {}))
    assert any("rms_norm_eps" in line and "1e-05" in line for line in assumed)


def test_rope_parameters_count_as_given():
    text = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    del text["rope_theta"]
    config, assumed = MoxinAddOn.decoder_config({"text_config": text})
    assert "rope_theta" not in config
    assert assumed == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 90),
        ({"image_token_index": 5}, 5),
        ({"image_token_index": 96}, 0),
        ({"text_config": {**TEXT, "pad_token_id": None}, "pad_token_id": 9}, 9),
        ({"text_config": {**TEXT, "pad_token_id": None}}, 0),
    ],
)
def test_placeholder_id(load, changes, expected):
    assert load(**changes).placeholder_id == expected


# --- preprocessing ----------------------------------------------------------------------------


def test_normalize():
    image = np.random.default_rng(0).random((2, 4, 5, 3), dtype=np.float32)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    assert np.allclose(normalize_dino(mx.array(image)), (image - mean) / std, atol=1e-6)
    assert np.allclose(normalize_siglip(mx.array(image[0])), image[0] * 2 - 1, atol=1e-6)


def by_hand(image, strategy, fill, size=IMAGE_SIZE) -> np.ndarray:
    """Prismatic's transforms spelled out, as uint8 pixels."""
    width, height = image.size
    if strategy == "resize-naive":
        return np.asarray(image.resize((size, size), Image.BICUBIC))
    if strategy == "letterbox":
        side = max(width, height)
        across, down = int((side - width) / 2), int((side - height) / 2)
        canvas = np.empty((height + 2 * down, width + 2 * across, 3), np.uint8)
        canvas[:] = fill
        canvas[down : down + height, across : across + width] = np.asarray(image)
        image = Image.fromarray(canvas)
        width, height = image.size
    if width < height:
        new = size, int(size * height / width)
    else:
        new = int(size * width / height), size
    pixels = np.asarray(image.resize(new, Image.BICUBIC))
    top, left = round((new[1] - size) / 2), round((new[0] - size) / 2)
    return pixels[top : top + size, left : left + size]


@pytest.mark.parametrize("size", [(133, 80), (41, 60), (60, 41), (200, 31), (70, 70)])
@pytest.mark.parametrize("strategy", ["resize-naive", "resize-crop", "letterbox"])
def test_strategies_by_hand(tmp_path, strategy, size):
    photo = Photo(*size, seed=5)
    config = {"image_resize_strategy": strategy}
    dino, siglip = read_recipes(tmp_path, config, IMAGE_SIZE)
    pixels = by_hand(photo.image, strategy, (123, 116, 103)) / 255
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    assert dino(photo.image).shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert dino(photo.image).dtype == mx.float32
    assert np.allclose(dino(photo.image), (pixels - mean) / std, atol=1e-5)
    pixels = by_hand(photo.image, strategy, (127, 127, 127)) / 255
    assert np.allclose(siglip(photo.image), pixels * 2 - 1, atol=1e-5)


def test_elongated_picture_is_refused_before_it_grows(load):
    ribbon = Photo(20_000, 1, 0)
    for strategy in ("letterbox", "resize-crop"):
        add_on = load(image_resize_strategy=strategy)
        add_on.row_count(Photo(400, 1, 0))
        if strategy == "letterbox":
            with pytest.raises(ImageError, match="20000x1"):
                add_on.row_count(ribbon)
    assert load().row_count(ribbon) == PATCHES
    recipe = PixelRecipe(IMAGE_SIZE, "resize-crop", (0.5,) * 3, (0.5,) * 3, (0, 0, 0))
    with pytest.raises(ImageError, match="elongated"):
        recipe.check((1, 60_000))


def processor(tmp_path, **fields):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields), encoding="utf-8")
    return read_recipes(tmp_path, {"image_resize_strategy": "letterbox"}, IMAGE_SIZE)


def test_saved_processor_wins(tmp_path):
    dino, siglip = processor(
        tmp_path,
        image_resize_strategy="resize-crop",
        input_sizes=[[3, IMAGE_SIZE, IMAGE_SIZE]] * 2,
        interpolations=["bicubic", "bicubic"],
        means=[[0.484375, 0.455078125, 0.40625], [0.5, 0.5, 0.5]],
        stds=[[0.228515625, 0.2236328125, 0.224609375], [0.25, 0.5, 0.5]],
        tvf_resize_params=[{"interpolation": 3, "size": [70, 70], "antialias": True}] * 2,
        tvf_letterbox_fill=None,
    )
    assert dino.strategy == siglip.strategy == "resize-crop"
    assert dino.mean == (0.484375, 0.455078125, 0.40625)
    assert dino.std == (0.228515625, 0.2236328125, 0.224609375)
    assert siglip.std == (0.25, 0.5, 0.5)
    assert dino.fill == (123, 116, 103)
    dino, siglip = processor(tmp_path, tvf_letterbox_fill=[127, 127, 127])
    assert dino.strategy == "letterbox"
    assert dino.fill == siglip.fill == (127, 127, 127)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_resize_strategy", "stretch"),
        ("interpolations", ["bicubic", "lanczos"]),
        ("tvf_resize_params", [{"interpolation": 2}]),
        ("input_sizes", [[3, 224, 224], [3, 224, 224]]),
    ],
)
def test_processor_that_is_not_served(tmp_path, field, value):
    with pytest.raises(UnsupportedCheckpoint, match=field):
        processor(tmp_path, **{field: value})


@pytest.mark.parametrize(
    "fields",
    [
        {"means": [[0.5, 0.5, 0.5]]},
        {"means": [[0.5, 0.5], [0.5, 0.5]]},
        {"stds": "0.5"},
        {"input_sizes": 224},
        {"tvf_resize_params": ["bicubic"]},
        {"tvf_letterbox_fill": 127},
    ],
)
def test_broken_processor(tmp_path, fields):
    with pytest.raises(BrokenConfig, match="preprocessor_config"):
        processor(tmp_path, **fields)


def test_damaged_processor(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(BrokenConfig, match="preprocessor_config"):
        read_recipes(tmp_path, {}, IMAGE_SIZE)
