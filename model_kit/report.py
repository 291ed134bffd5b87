"""What a checkpoint is and what loading it takes: read from configs and headers alone."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from model_kit.config import CheckpointConfig
from model_kit.decoder import select_decoder
from model_kit.names import decoder_name
from vision_add_ons.registry import import_path


@dataclass
class LoadReport:
    """Sizes are in bytes; `kv_bytes_per_token` is what a conversation adds for each token."""

    folder: Path
    """Where the checkpoint lies."""
    model_type: str
    """That of config.json."""
    decoder_type: str
    """mlx-lm's name for the decoder's architecture."""
    add_on: str | None
    """The class that makes rows of pictures, `module:Class`; None where text is all."""
    layers: int | None
    """The decoder's."""
    hidden_size: int | None
    """How wide the decoder's rows are."""
    vocab_size: int | None
    """How many tokens the decoder knows."""
    max_context: int | None
    """The most tokens of prompt and answer together; None for no known limit."""
    decoder_bytes: int
    """Of the decoder's weights."""
    vision_bytes: int
    """Of the weights of towers and projector."""
    dtypes: dict[str, str]
    """By part, "decoder" and "vision", what most of its weights are in."""
    quantization: dict[str, Any] | None
    """config.json's, where MLX quantized the checkpoint."""
    other_quantization: str | None
    """The method, where another tool than MLX quantized the checkpoint."""
    kv_bytes_per_token: int | None
    memory_needed: int
    """With room for a conversation of 4,096 tokens."""
    memory_there: int | None
    """What the device recommends to use, else what the machine has."""
    sampling: dict[str, float] = field(default_factory=dict)
    """What generation_config.json asks for where nobody asks for anything: `temperature`, `top_p`,
    `top_k`, `min_p`, `repetition_penalty`, as far as it does; without a temperature, the likeliest
    token."""
    at_once: str = "none"
    """Which answers can be made at the same time, and which by themselves alone."""
    pictures: list[str] = field(default_factory=list)
    """What pictures become and where their limits are."""
    tools: str | None = None
    """How tools are told to the model and calls are read, where that was looked at."""
    thoughts: str | None = None
    """Whether the model thinks before it answers, and how that is told, where it was looked at."""
    assumed: list[str] = field(default_factory=list)
    """Values that the checkpoint leaves out, and what was taken for them."""
    notes: list[str] = field(default_factory=list)
    """What else a user should know."""

    def lines(self) -> list[str]:
        """The report as text, one fact a line."""
        quantized = "no"
        if self.quantization:
            bits, group = self.quantization["bits"], self.quantization["group_size"]
            quantized = f"{bits} bits, groups of {group}"
        elif self.other_quantization:
            quantized = f"by {self.other_quantization}, read by mlx-lm"
        kv = self.kv_bytes_per_token
        named: dict[str, float] = {"temperature": 0} | self.sampling
        sampling = ", ".join(f"{name} {value}" for name, value in named.items())
        if not named["temperature"]:
            sampling += " (the likeliest token)"
        facts = {
            "folder": self.folder,
            "model type": self.model_type,
            "decoder": f"{self.decoder_type} (mlx-lm), {self.layers} layers, "
            f"{self.hidden_size} wide, {self.vocab_size} tokens",
            "vision add-on": self.add_on or "none (text only)",
            "dtype": ", ".join(f"{part} {dtype}" for part, dtype in self.dtypes.items()),
            "quantized": quantized,
            "context": f"{self.max_context} tokens" if self.max_context else "no limit stated",
            "sampling": sampling,
            "size": f"decoder {gigabytes(self.decoder_bytes)}, vision "
            f"{gigabytes(self.vision_bytes)}",
            "KV cache": f"{kv / 1024:.1f} KiB per token" if kv else "size unknown",
            "at once": self.at_once,
            "memory": f"{gigabytes(self.memory_needed)} needed, "
            f"{gigabytes(self.memory_there) if self.memory_there else 'unknown'} there",
        }
        lines = [f"{name + ':':15}{value}" for name, value in facts.items()]
        lines += [f"{'pictures:':15}{line}" for line in self.pictures]
        lines += [f"{'tools:':15}{self.tools}"] if self.tools else []
        lines += [f"{'thoughts:':15}{self.thoughts}"] if self.thoughts else []
        lines += [f"{'assumed:':15}{line}" for line in self.assumed]
        lines += [f"{'note:':15}{line}" for line in self.notes]
        return lines


def gigabytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def memory_there() -> int | None:
    """Bytes of memory that the device recommends to use, else those of the machine."""
    info = mx.device_info()
    for name in ("max_recommended_working_set_size", "memory_size", "total_memory"):
        if isinstance(info.get(name), int):
            return int(info[name])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def make_report(
    folder: Path, config: CheckpointConfig, weights: dict[str, mx.array], decoder_only: bool = False
) -> LoadReport:
    """Describe what a load takes in; `weights` are what it reads, none for the vocabulary alone."""
    decoder = select_decoder(weights, config.decoder_prefixes) if weights else {}
    sees = config.add_on is not None and bool(weights) and not decoder_only
    decoder_bytes = sum(w.nbytes for w in decoder.values())
    vision_bytes = sum(w.nbytes for w in weights.values()) - decoder_bytes
    if not sees:
        vision_bytes = 0
    cfg = config.decoder
    dtypes = {"decoder": _dtype(decoder)}
    if vision_bytes:
        eyes = {n: w for n, w in weights.items() if not decoder_name(n, config.decoder_prefixes)}
        dtypes["vision"] = _dtype(eyes)
    kv_bytes = _kv_bytes_per_token(cfg, decoder)
    report = LoadReport(
        folder=folder,
        model_type=config.model_type,
        decoder_type=config.decoder_type,
        add_on=import_path(config.add_on) if config.add_on and sees else None,
        layers=cfg.get("num_hidden_layers"),
        hidden_size=cfg.get("hidden_size"),
        vocab_size=cfg.get("vocab_size"),
        max_context=config.max_context,
        decoder_bytes=decoder_bytes,
        vision_bytes=vision_bytes,
        dtypes=dtypes,
        quantization=config.quantization,
        other_quantization=(config.raw.get("quantization_config") or {}).get("quant_method"),
        kv_bytes_per_token=kv_bytes,
        # Room for a conversation of 4,096 tokens beside the weights.
        memory_needed=decoder_bytes + vision_bytes + 4096 * (kv_bytes or 0),
        memory_there=memory_there(),
        sampling=config.sampling.values,
        assumed=config.assumed,
        notes=list(config.sampling.ignored),
    )
    if report.memory_there and report.memory_needed > report.memory_there:
        report.notes.append("needs more memory than there is: expect it to be slow, or to fail")
    return report


def _dtype(weights: dict[str, mx.array]) -> str:
    """The floating-point dtype that most of the bytes have."""
    sizes: dict[str, int] = {}
    for w in weights.values():
        if mx.issubdtype(w.dtype, mx.floating):
            name = str(w.dtype).removeprefix("mlx.core.")
            sizes[name] = sizes.get(name, 0) + w.nbytes
    return max(sizes, key=lambda name: sizes[name]) if sizes else "none"


def _kv_bytes_per_token(cfg: dict[str, Any], decoder: dict[str, mx.array]) -> int | None:
    try:
        heads = cfg["num_attention_heads"]
        head_dim = cfg.get("head_dim") or cfg["hidden_size"] // heads
        kv_heads = cfg.get("num_key_value_heads") or heads
        itemsize = 4 if _dtype(decoder) == "float32" else 2
        layers = cfg["num_hidden_layers"] - (cfg.get("num_kv_shared_layers") or 0)
        return int(2 * layers * kv_heads * head_dim * itemsize)
    except (KeyError, TypeError, ZeroDivisionError):
        return None
