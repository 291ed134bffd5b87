"""Tiny whole checkpoints to damage: a text model and five families, in one file and in two."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file
from support.seeing_checkpoints import FORMS
from support.tiny import SIZES
from transformers import MistralConfig, MistralForCausalLM

from model_kit import quantize
from vision_add_ons.testing import VOCAB, random_weights, write_tokenizer
from vision_add_ons.testing.quantization import quantize_folder, round_weights


def _text(folder: Path, seed: int, quantized: bool = False) -> None:
    sizes = {**SIZES, "vocab_size": VOCAB, "num_hidden_layers": 2}
    model = random_weights(MistralForCausalLM(MistralConfig(**sizes)), seed)
    kept = round_weights(model, towers=True) if quantized else {}
    model.save_pretrained(folder)
    if quantized:
        quantize_folder(folder, kept)
    write_tokenizer(folder)


def _quantized(make: Callable[[Path, int], Any]) -> Callable[[Path, int], Any]:
    def made(folder: Path, seed: int) -> None:
        plain = folder.with_name(folder.name + "-plain")
        make(plain, seed)
        quantize(plain, folder, bits=4, group_size=32, towers_bits=8)

    return made


MAKERS: dict[str, Callable[[Path, int], Any]] = {
    "text": _text,
    "text, quantized": lambda folder, seed: _text(folder, seed, quantized=True),
    "moxin": FORMS["moxin hf"],
    "gemma3": FORMS["gemma3 transformers 5"],
    "gemma3, as published": FORMS["gemma3 transformers 4"],
    "idefics3": FORMS["idefics3 transformers 5"],
    "idefics3, as published": FORMS["idefics3 transformers 4"],
    "pixtral": FORMS["pixtral transformers 5"],
    "pixtral, by mlx-vlm": FORMS["pixtral mlx-vlm"],
    "qwen2_vl": FORMS["qwen2_vl transformers 5"],
    "qwen2_vl, as published": FORMS["qwen2_vl transformers 4"],
}
MAKERS |= {
    f"{name}, towers quantized": _quantized(MAKERS[name])
    for name in ("moxin", "gemma3", "pixtral", "qwen2_vl")
}
IN_TWO_FILES = ("text", "moxin", "gemma3", "pixtral", "qwen2_vl")


def write_wholes(place: Path, seed: int) -> dict[str, Path]:
    """All of them under `place`, by name."""
    folders = {}
    for name, make in MAKERS.items():
        for files in (1, 2) if name in IN_TWO_FILES else (1,):
            full = f"{name}, {files} files" if files > 1 else name
            folders[full] = place / full.replace(", ", "-").replace(" ", "-")
            make(folders[full], seed)
            if files > 1:
                split(folders[full])
    return folders


def split(folder: Path) -> None:
    """Spread the weights over two files, and write the index of both."""
    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    names = sorted(tensors)
    homes = {}
    for number in (1, 2):
        file = f"model-{number:05}-of-00002.safetensors"
        own = names[number - 1 :: 2]
        save_file({name: tensors[name] for name in own}, folder / file, metadata={"format": "pt"})
        homes |= dict.fromkeys(own, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}}
    text = json.dumps({**index, "weight_map": homes}, indent=2)
    (folder / "model.safetensors.index.json").write_text(text)
