"""The vision transformer of both towers, in the layout and with the weight names of timm."""

import re

import mlx.core as mx
import mlx.nn as nn

from vision_add_ons.graph_bytes import graph_bytes
from vision_add_ons.moxin.vit_config import ViTConfig
from vision_add_ons.tower_bytes import conv_bytes
from vision_add_ons.weights import load_module, with_prefix

EPS = 1e-6
UNUSED = ("norm.", "attn_pool.")  # what follows the last block; features are taken before it


class PatchEmbed(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.embed_dim, config.patch_size, stride=config.patch_size)

    def __call__(self, pixels: mx.array) -> mx.array:
        return self.proj(pixels).flatten(1, 2)


class Attention(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.scale = (config.embed_dim // config.num_heads) ** -0.5
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def __call__(self, x: mx.array) -> mx.array:
        batch, length, _ = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, -1)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        x = mx.fast.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(x.transpose(0, 2, 1, 3).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.embed_dim)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(nn.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = mx.ones(dim)

    def __call__(self, x: mx.array) -> mx.array:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim, scaled = config.embed_dim, config.has_layer_scale
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(config)
        self.ls1 = LayerScale(dim) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = MLP(config)
        self.ls2 = LayerScale(dim) if scaled else nn.Identity()

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class ViTEncoder(nn.Module):
    """A tower up to the features that Prismatic reads: the output of the last block but one.

    The last block and the final norm therefore do not exist here.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = mx.zeros((1, config.num_patches + config.has_class_position, dim))
        if config.has_cls_token:
            self.cls_token = mx.zeros((1, 1, dim))
        if config.num_registers:
            self.reg_token = mx.zeros((1, config.num_registers, dim))
        self.blocks = [Block(config) for _ in range(config.depth - 1)]

    def __call__(self, pixels: mx.array) -> mx.array:
        """Normalised pixels [B, image_size, image_size, 3] to patch features [B, patches, dim].

        The dtype is that of the weights, whatever the pixels come in.
        """
        patches = self.config.num_patches
        x = self.patch_embed(pixels.astype(self.pos_embed.dtype)) + self.pos_embed[:, -patches:]
        prefix = []
        if self.config.has_class_position:
            prefix.append(self.cls_token + self.pos_embed[:, :1])
        elif self.config.has_cls_token:
            prefix.append(self.cls_token)
        if self.config.num_registers:
            prefix.append(self.reg_token)
        prefix = [mx.broadcast_to(token, (len(x), *token.shape[1:])) for token in prefix]
        x = mx.concatenate([*prefix, x], axis=1)
        for block in self.blocks:
            x = block(x)
        return x[:, -patches:]

    def most_bytes(self) -> int:
        """The most bytes beside the weights that one picture takes; for when it was just loaded."""
        kernel = self.patch_embed.proj.weight
        patch, dtype = self.config.patch_size, kernel.dtype
        rows = self.config.num_patches + self.config.num_registers + self.config.has_cls_token
        x = mx.zeros((1, rows, self.config.embed_dim), dtype)
        # Attention copies what comes in another order: queries, keys, values, and what is seen.
        block = graph_bytes(self.blocks[0], x, modules=[self.blocks[0]]) + 4 * x.nbytes
        pixels = self.config.num_patches * patch * patch * 3 * 8
        embedded = pixels + conv_bytes(kernel, self.config.num_patches) + 4 * x.nbytes
        return embedded + len(self.blocks) * block

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """timm's names, or those of the Hugging Face conversion, and layouts become ours."""
        renamed = {}
        for name, weight in weights.items():
            if name.startswith(f"blocks.{self.config.depth - 1}."):
                continue
            name = re.sub(r"(\.ls[12])\.scale_factor$", r"\1.gamma", name)
            name = "reg_token" if name == "register_tokens" else name
            if name == "patch_embed.proj.weight":
                weight = weight.transpose(0, 2, 3, 1)
            renamed[name] = weight
        return renamed


def load_vit_encoder(weights: dict[str, mx.array], prefix: str, config: ViTConfig) -> ViTEncoder:
    """The tower whose tensors are those of `weights` under `prefix`.

    Raises `MissingWeight`, `UnexpectedWeight` or `UnexpectedShape`.
    """
    encoder = ViTEncoder(config)
    load_module(encoder, encoder.sanitize(with_prefix(weights, prefix)), prefix, UNUSED)
    return encoder
