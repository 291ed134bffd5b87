"""What a picture takes of memory beside the weights, measured and as estimated.

Each family's tower is built at its published sizes with random weights, but with few blocks: they
are computed one after another, so their number does not change the peak (of less than 512 patches,
all at once: there, peak and estimate are those of so many blocks). The published largest picture
and smaller ones are encoded.

    python -m scripts.tower_memory --dtype bfloat16 --blocks 2 gemma3 qwen2_vl
"""

import argparse
import copy
import gc
import json
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from PIL import Image
from tokenizers import Tokenizer, models

from engine.images import load_picture
from scripts.vision_families import FAMILIES, mlx_vlm_model, write_checkpoint
from vision_add_ons import minicpmv
from vision_add_ons.base import VisionAddOn
from vision_add_ons.lfm2_vl.add_on import TOKENS, Lfm2VLAddOn
from vision_add_ons.lfm2_vl.config import resolve
from vision_add_ons.lfm2_vl.tower import Projector, Siglip2Tower
from vision_add_ons.moxin.add_on import MoxinAddOn
from vision_add_ons.moxin.names import PROJECTOR, TOWERS
from vision_add_ons.moxin.projector import FusedMLPProjector
from vision_add_ons.moxin.vit import ViTEncoder
from vision_add_ons.moxin.vit_config import ViTConfig
from vision_add_ons.registry import find_add_on

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}

# The published towers: the decoder's width, fields of vision_config beside those of the families,
# the processor's settings, and pictures, the largest that is published last.
SIGLIP = {"size": {"height": 896, "width": 896}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
SQUARE = {side: {**SIGLIP, "size": {"height": side, "width": side}} for side in (224, 448, 896)}
QWEN = {"patch_size": 14, "min_pixels": 3136, "max_pixels": 12845056}
QWEN_PICTURES = ((640, 480), (1280, 720), (1920, 1080), (3000, 2000), (3584, 3584))
QWEN3 = {
    "patch_size": 16,
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
QWEN3_PICTURES = ((256, 256), *QWEN_PICTURES[:-1], (4096, 4096))
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16}
LFM2_PICTURES = ((300, 300), (400, 400), (512, 512), (1100, 600), (4000, 3000))
MINICPM = {**SO400M, "image_size": 980, "patch_size": 14}
MINICPM_PICTURES = ((200, 100), (448, 448), (448, 9000), (900, 448), (4000, 3000))
GLM = {"patch_size": 14, "size": {"shortest_edge": 12544, "longest_edge": 9633792}}
PUBLISHED: tuple[
    tuple[str, int, dict[str, Any], dict[str, Any], tuple[tuple[int, int], ...]], ...
] = (
    ("gemma3", 2560, {"image_size": 896}, SQUARE[896], ((896, 896),)),
    *(
        ("paligemma", 2048, {"image_size": side}, SQUARE[side], ((side, side),))
        for side in (224, 448, 896)
    ),
    ("internvl", 4096, {}, SQUARE[448], ((448, 448), (896, 448), (1344, 896), (1792, 1344))),
    ("pixtral", 5120, {}, {"size": {"longest_edge": 1024}}, ((400, 300), (640, 480), (1024, 1024))),
    (
        "mistral3",
        5120,
        {"image_size": 1540},
        {"size": {"longest_edge": 1540}},
        ((400, 300), (640, 480), (1000, 800), (1540, 1540)),
    ),
    (
        "idefics3",
        576,
        {"image_size": 512},
        {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
        ((500, 100), (640, 480), (1024, 1024)),
    ),
    ("moxin", 4096, {}, {}, ((224, 224),)),
    ("lfm2_vl", 1024, {}, {}, LFM2_PICTURES),
    ("lfm2_vl", 2048, SO400M, {}, LFM2_PICTURES),
    ("minicpmv4_6", 1024, MINICPM, {}, MINICPM_PICTURES),
    ("qwen2_vl", 3584, {}, QWEN, QWEN_PICTURES),
    ("qwen2_5_vl", 3584, {}, QWEN, QWEN_PICTURES),
    ("qwen3_vl", 4096, {}, QWEN3, QWEN3_PICTURES),
    ("glm4v", 4096, {}, GLM, (*QWEN_PICTURES[:-1], (2184, 2184))),
)


def build(
    name: str, width: int, fields: dict[str, Any], settings: dict[str, Any], blocks: int, dtype: str
) -> VisionAddOn:
    """The family's add-on with a tower of published widths and so many blocks."""
    if name == "moxin":
        return _moxin(width, DTYPES[dtype])
    if name == "lfm2_vl":
        return _lfm2_vl(width, fields | {"num_hidden_layers": blocks}, DTYPES[dtype])
    if name == "minicpmv4_6":
        return _minicpmv(width, fields | {"num_hidden_layers": blocks}, DTYPES[dtype])
    family = FAMILIES[name]
    config: dict[str, Any] = {"model_type": name, **copy.deepcopy(family.config)}
    qwen = name.startswith(("qwen", "glm"))
    text = config.get("text_config", config)
    text |= {"hidden_size": width, "num_attention_heads": width // 128, "head_dim": 128}
    for field in ("hidden_size", "projection_dim"):
        if field in config:
            config[field] = width
    vision = config["vision_config"] | family.real | fields
    vision["depth" if qwen else "num_hidden_layers"] = blocks
    if qwen:
        text["rope_scaling"] = {"type": "mrope", "mrope_section": [16, 24, 24]}
        if name == "glm4v":
            text["rope_scaling"] = {"type": "default", "mrope_section": [8, 12, 12]}
        vision |= {"hidden_size": width} if name == "qwen2_vl" else {"out_hidden_size": width}
        vision["fullatt_block_indexes"] = [blocks - 1]
        vision["deepstack_visual_indexes"] = list(range(min(3, blocks)))
        text["num_hidden_layers"] = 3
    vision |= {"projection_dim": width} if name == "paligemma" else {}
    config["vision_config"] = vision
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        model = mlx_vlm_model(name, copy.deepcopy(config))
        model.set_dtype(DTYPES[dtype])
        write_checkpoint(folder, family, config, settings, model)
        del model
        found = find_add_on(name)
        assert found is not None
        add_on = found(folder, json.loads((folder / "config.json").read_text()))
        _read(add_on)
    return add_on


def _moxin(width: int, dtype: mx.Dtype) -> VisionAddOn:
    """With all blocks: towers as wide as the published ones are taken for those."""
    published = ViTConfig.dinov2_large(), ViTConfig.siglip_so400m()
    parts: dict[str, nn.Module] = {
        tower: ViTEncoder(config) for tower, config in zip(TOWERS[0], published, strict=True)
    }
    parts[PROJECTOR] = FusedMLPProjector(sum(config.embed_dim for config in published), width)
    weights = {}
    for prefix, part in parts.items():
        part.set_dtype(dtype)
        for name, weight in tree_flatten(part.parameters()):
            kernel = name == "patch_embed.proj.weight"
            weights[prefix + name] = weight.transpose(0, 3, 1, 2) if kernel else weight
    text = {"model_type": "mistral", "hidden_size": width}
    with tempfile.TemporaryDirectory() as directory:
        mx.save_safetensors(f"{directory}/model.safetensors", weights)
        parts.clear()
        weights.clear()
        add_on = MoxinAddOn(Path(directory), {"model_type": "prismatic", "text_config": text})
        _read(add_on)
    return add_on


def _lfm2_vl(width: int, vision: dict[str, Any], dtype: mx.Dtype) -> VisionAddOn:
    config = {
        "model_type": "lfm2_vl",
        "text_config": {"hidden_size": width},
        "vision_config": vision,
        "image_token_id": 0,
    }
    whole = resolve(config)
    parts: dict[str, nn.Module] = {"vision_tower.": Siglip2Tower(whole["vision_config"])}
    parts["multi_modal_projector."] = Projector(whole)
    places = [f"<|img_row_{i}_col_{j}|>" for i in range(1, 11) for j in range(1, 11)]
    return _looking(Lfm2VLAddOn, config, parts, dtype, [*TOKENS.values(), *places])


def _minicpmv(width: int, vision: dict[str, Any], dtype: mx.Dtype) -> VisionAddOn:
    config = {
        "model_type": "minicpmv4_6",
        "text_config": {"hidden_size": width},
        "vision_config": vision,
        "insert_layer_id": 0,
        "image_token_id": 0,
    }
    whole = minicpmv.config.resolve(config)
    parts: dict[str, nn.Module] = {
        "vision_tower.": minicpmv.tower.MiniCPMVTower(whole["vision_config"], merging=True),
        "merger.": minicpmv.tower.Merger(vision["hidden_size"], width),
    }
    tokens = list(minicpmv.prompt.TOKENS.values())
    return _looking(minicpmv.MiniCPMV46AddOn, config, parts, dtype, tokens)


def _looking(
    kind: type[VisionAddOn],
    config: dict[str, Any],
    parts: dict[str, nn.Module],
    dtype: mx.Dtype,
    tokens: list[str],
) -> VisionAddOn:
    """An add-on with these parts, by what precedes their weights' names, and these tokens."""
    weights = {}
    for prefix, part in parts.items():
        part.set_dtype(dtype)
        weights |= {prefix + name: weight for name, weight in tree_flatten(part.parameters())}
    words = Tokenizer(models.WordLevel({text: i for i, text in enumerate(tokens)}, tokens[0]))
    words.add_special_tokens(tokens)
    with tempfile.TemporaryDirectory() as directory:
        mx.save_safetensors(f"{directory}/model.safetensors", weights)
        parts.clear()
        weights.clear()
        words.save(f"{directory}/tokenizer.json")
        add_on = kind(Path(directory), config)
        _read(add_on)
    return add_on


def _read(add_on: VisionAddOn) -> None:
    """Have all weights read, which would be read when they are first used."""
    for part in vars(add_on).values():
        if isinstance(part, nn.Module):
            mx.eval(part.parameters())


def measure(add_on: VisionAddOn, size: tuple[int, int]) -> tuple[int, int | None, float]:
    """The peak of one picture beside the weights, the estimate, and seconds."""
    noise = np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    picture = load_picture(Image.fromarray(noise))
    estimate = add_on.tower_bytes(size)
    gc.collect()
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    started = time.perf_counter()
    rows = add_on.encode_image(picture)
    mx.eval(rows)
    mx.synchronize()
    return mx.get_peak_memory() - before, estimate, time.perf_counter() - started


def table(names: list[str], dtype: str, blocks: int, most: int) -> Iterator[str]:
    """A line for each picture of each family, of at most so many pixels."""
    for name, width, fields, settings, sizes in PUBLISHED:
        if names and name not in names:
            continue
        try:
            add_on = build(name, width, fields, settings, blocks, dtype)
            for size in sizes:
                if size[0] * size[1] > most:
                    continue
                peak, estimate, seconds = measure(add_on, size)
                told = (
                    f"{estimate / 1e6:9.1f} {estimate / peak:6.2f}" if estimate else "no estimate"
                )
                picture = f"{size[0]}x{size[1]}"
                yield f"{name:11} {picture:>10} {dtype:9} {peak / 1e6:9.1f} {told} {seconds:7.1f} s"
        except Exception:
            yield f"{name:11} failed: {traceback.format_exc()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--most", type=int, default=2**31, help="pixels of the largest picture")
    args = parser.parse_args()
    print(f"{mx.default_device()}, MLX {mx.__version__}; MB beside the weights")
    print(f"{'family':11} {'picture':>10} {'dtype':9} {'measured':>9} {'estimate':>9}  ratio")
    for line in table(args.families, args.dtype, args.blocks, args.most):
        print(line, flush=True)


if __name__ == "__main__":
    main()
