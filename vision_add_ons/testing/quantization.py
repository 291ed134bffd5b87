"""A reference with the weights that MLX's quantization leaves, and the checkpoint to go with it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save_file

from vision_add_ons.testing.reference import Reference
from vision_add_ons.testing.torch_weights import set_values

GROUP, BITS = 32, 4

DECODER = ("lm_head", "language_model", "text_model")
"""What transformers' modules of a decoder have in their names."""

Kept = dict[str, tuple[Any, ...]]
"""The quantized form of weights, by the digest of what they are rounded to."""


class QuantizedReference(Reference):
    """A reference whose weights were rounded: it is written quantized."""

    def __init__(self, of: Reference, kept: Kept) -> None:
        self.of, self.kept = of, kept
        self.dialects = of.dialects[-1:]  # type: ignore[misc]
        fields = ("name", "image_token", "sizes", "decoder_scale", "continues", "special_tokens")
        for field in fields:
            setattr(self, field, getattr(of, field))

    def write(self, folder: Path, dialect: str) -> None:
        self.of.write(folder, dialect)
        quantize_folder(folder, self.kept)

    def block(self, image: Image.Image) -> list[int]:
        return self.of.block(image)

    def before(self, index: int) -> list[int]:
        return self.of.before(index)

    def rows(self, image: Image.Image) -> np.ndarray:
        return self.of.rows(image)

    def logits(self, tokens: list[int], images: list[Image.Image], answer: list[int]) -> np.ndarray:
        return self.of.logits(tokens, images, answer)


def round_weights(model: Any, towers: bool) -> Kept:
    """Round a torch model's linear layers and embeddings to what quantization keeps of them.

    Without `towers`, only its decoder's. Changes the model.
    """
    kept: Kept = {}
    done = set()
    for name, module in model.named_modules():
        decoder = any(part in name for part in DECODER)
        layer = hasattr(module, "in_features") or hasattr(module, "num_embeddings")
        if not layer or module.weight.shape[-1] % GROUP or not (decoder or towers):
            continue
        if module.weight.data_ptr() in done:  # the head of tied embeddings
            continue
        done.add(module.weight.data_ptr())
        set_values(module.weight, round_array(module.weight.detach().numpy(), kept))
    return kept


def round_array(array: np.ndarray, kept: Kept) -> np.ndarray:
    """What quantization keeps of one matrix, whose rows `GROUP` divides; its quantized form is put
    into `kept`."""
    parts = mx.quantize(mx.array(array), GROUP, BITS)
    rounded = np.array(mx.dequantize(*parts, group_size=GROUP, bits=BITS))
    kept[hashlib.sha256(rounded.tobytes()).hexdigest()] = parts
    return rounded


def quantize_folder(folder: Path, kept: Kept) -> None:
    """Write the quantized weights in place of the rounded ones, as MLX's converters do."""
    file = folder / "model.safetensors"
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in load_file(file).items():
        parts = kept.get(hashlib.sha256(np.ascontiguousarray(tensor).tobytes()).hexdigest())
        if parts is None:
            tensors[name] = tensor
            continue
        stem = name.removesuffix("weight")
        for end, part in zip(("weight", "scales", "biases"), parts, strict=True):
            tensors[stem + end] = np.array(part)
    save_file(tensors, file, metadata={"format": "mlx"})
    config = json.loads((folder / "config.json").read_text())
    entry = {"group_size": GROUP, "bits": BITS}
    config |= {"quantization": entry, "quantization_config": entry}
    (folder / "config.json").write_text(json.dumps(config))
