"""SmolLM2 in PyTorch, frozen, with low-rank changes to its linear layers that learn."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

LINEARS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
NORMS = ("input_layernorm", "post_attention_layernorm")


class Decoder(nn.Module):
    """The weights of a text checkpoint, and `lora_a` [in, rank] and `lora_b` [rank, out] for each.

    A linear layer computes with W + scale * (a b)^T. Making that sum once a step is cheaper than
    running the low-rank products beside every activation, and the gradients are the same. All
    layers' weights of one kind are one tensor [layers, out, in], so the sums are few operations.
    """

    def __init__(self, folder: Path, rank: int = 8, scale: float = 2.0) -> None:
        super().__init__()
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.layers: int = self.config["num_hidden_layers"]
        self.rank, self.scale = rank, scale
        saved = {name: w.float() for name, w in load_file(folder / "model.safetensors").items()}
        self.register_buffer("embedding", saved["model.embed_tokens.weight"])
        self.register_buffer("norm", saved["model.norm.weight"])
        for part in (*LINEARS, *NORMS):
            several = [saved[f"model.layers.{i}.{part}.weight"] for i in range(self.layers)]
            self.register_buffer(_flat(part), torch.stack(several))
        self.lora = nn.ParameterDict()
        for part in LINEARS:
            _, out, into = getattr(self, _flat(part)).shape
            a = torch.empty(self.layers, into, rank).uniform_(-(into**-0.5), into**-0.5)
            self.lora[_flat(f"{part}.lora_a")] = nn.Parameter(a)
            self.lora[_flat(f"{part}.lora_b")] = nn.Parameter(torch.zeros(self.layers, rank, out))
        self.dtype = torch.float32
        self._run = _layer

    def compile(self) -> None:  # type: ignore[override]
        """One compilation serves all layers, since they differ in their arguments only."""
        self._run = torch.compile(_layer, dynamic=False)

    def run_plainly(self) -> None:
        """Without compiling, for lengths that change all the time."""
        self._run = _layer

    def forward(self, x: Tensor, adapted: bool = True) -> Tensor:
        """Embeddings [B, L, hidden] to the last hidden states, normed. Causal; no padding mask."""
        cos, sin = self._rotation(x.shape[1], x.device)
        x = x.to(self.dtype)
        eps = self.config["rms_norm_eps"]
        weights = [self._weights(part, adapted).unbind() for part in LINEARS]
        norms = [getattr(self, _flat(part)).unbind() for part in NORMS]
        for layer in range(self.layers):
            x = self._run(x, cos, sin, [n[layer] for n in norms], [w[layer] for w in weights], eps)
        return _norm(x, self.norm, eps)

    def _weights(self, part: str, adapted: bool) -> Tensor:
        plain = getattr(self, _flat(part))
        if not adapted:
            return plain.to(self.dtype)
        low, high = (self.lora[_flat(f"{part}.lora_{x}")] for x in "ab")
        changed = torch.baddbmm(plain, high.transpose(1, 2), low.transpose(1, 2), alpha=self.scale)
        return changed.to(self.dtype)

    def embed(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.embedding).to(self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.embedding.to(hidden.dtype).T

    def adapters(self) -> dict[str, Tensor]:
        """The changes by the names that mlx-lm gives them."""
        return {
            f"model.layers.{layer}.{name.replace('/', '.')}": tensor.data[layer]
            for name, tensor in self.lora.items()
            for layer in range(self.layers)
        }

    def load_adapters(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self.lora.items():
            for layer in range(self.layers):
                saved = tensors[f"model.layers.{layer}.{name.replace('/', '.')}"]
                parameter.data[layer].copy_(saved)

    def plain_weights(self) -> dict[str, Tensor]:
        """The text checkpoint's tensors, by its names."""
        named = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm}
        for part in (*LINEARS, *NORMS):
            for layer, weight in enumerate(getattr(self, _flat(part))):
                named[f"model.layers.{layer}.{part}.weight"] = weight
        return named

    def _rotation(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        half = self.config["head_dim"] // 2
        steps = torch.arange(half, device=device, dtype=torch.float32) / half
        turns = torch.arange(length, device=device, dtype=torch.float32)
        angles = turns[:, None] * self.config["rope_theta"] ** -steps
        return angles.cos(), angles.sin()


def _flat(name: str) -> str:
    """Modules must not have dots in their names."""
    return name.replace(".", "/")


def _layer(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    norms: list[Tensor],
    weights: list[Tensor],
    eps: float,
) -> Tensor:
    q, k, v, o, gate, up, down = weights
    batch, length, hidden = x.shape
    dim = 2 * cos.shape[-1]
    normed = _norm(x, norms[0], eps)
    queries, keys, values = (
        F.linear(normed, w).view(batch, length, -1, dim).transpose(1, 2) for w in (q, k, v)
    )
    queries, keys = _rotate(queries, cos, sin), _rotate(keys, cos, sin)
    groups = queries.shape[1] // keys.shape[1]
    keys, values = (t.repeat_interleave(groups, dim=1) for t in (keys, values))
    mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    x = x + F.linear(mixed.transpose(1, 2).reshape(batch, length, hidden), o)
    normed = _norm(x, norms[1], eps)
    return x + F.linear(F.silu(F.linear(normed, gate)) * F.linear(normed, up), down)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * weight).to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype)
