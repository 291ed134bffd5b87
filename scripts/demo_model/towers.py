"""The towers, the projector and, while they learn, the heads that say what each patch shows."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from scripts.demo_model.decoder import Decoder

DINO_MEAN, DINO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TowerShape:
    """`depth` counts the blocks that run; a checkpoint has one more, which nothing reads."""

    width: int
    depth: int
    heads: int
    side: int = 128
    patch: int = 16
    registers: int = 0
    dino: bool = False

    @property
    def rows(self) -> int:
        return (self.side // self.patch) ** 2


@dataclass(frozen=True)
class EyesShape:
    dino: TowerShape = TowerShape(256, 6, 4, registers=4, dino=True)
    siglip: TowerShape = TowerShape(192, 6, 3)
    hidden: int = 576

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "EyesShape":
        towers = {name: TowerShape(**saved[name]) for name in ("dino", "siglip")}
        return cls(**towers, hidden=saved["hidden"])


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor


class Attention(nn.Module):
    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.proj = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps=1e-6)
        self.attn = Attention(shape)
        self.ls1 = Scale(shape.width) if shape.dino else nn.Identity()
        self.norm2 = nn.LayerNorm(shape.width, eps=1e-6)
        self.mlp = MLP(shape.width)
        self.ls2 = Scale(shape.width) if shape.dino else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, shape.width, shape.patch, stride=shape.patch)

    def forward(self, pixels: Tensor) -> Tensor:
        """A convolution whose windows do not overlap is a matrix product."""
        batch, _, side, _ = pixels.shape
        patch = self.proj.kernel_size[0]
        grid = side // patch
        cut = pixels.view(batch, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
        flat = cut.reshape(batch, grid * grid, 3 * patch * patch)
        return F.linear(flat, self.proj.weight.flatten(1), self.proj.bias)


class Tower(nn.Module):
    """Named as timm and the Hugging Face conversion name it."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.shape = shape
        self.patch_embed = PatchEmbed(shape)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, shape.rows, shape.width))
        if shape.dino:
            self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, shape.width))
            self.reg_token = nn.Parameter(0.02 * torch.randn(1, shape.registers, shape.width))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, side, side] to [B, rows, width]."""
        x = self.patch_embed(pixels) + self.pos_embed
        if self.shape.dino:
            prefix = torch.cat([self.cls_token, self.reg_token], dim=1)
            x = torch.cat([prefix.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x[:, -self.shape.rows :]


class Projector(nn.Module):
    def __init__(self, vision: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision, 4 * vision)
        self.fc2 = nn.Linear(4 * vision, hidden)
        self.fc3 = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))


class Eyes(nn.Module):
    """Pixels to rows of the decoder's embedding space."""

    def __init__(self, shape: EyesShape) -> None:
        super().__init__()
        self.shape = shape
        self.dino, self.siglip = Tower(shape.dino), Tower(shape.siglip)
        self.projector = Projector(shape.dino.width + shape.siglip.width, shape.hidden)
        self.register_buffer("mean", torch.tensor(DINO_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(DINO_STD).view(3, 1, 1), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5 * 0.7)
                nn.init.zeros_(module.bias)

    def features(self, pixels: Tensor) -> Tensor:
        """Pixels 0 to 1, [B, side, side, 3], to the features of both towers, side by side."""
        pixels = pixels.permute(0, 3, 1, 2).contiguous()
        dino = self.dino((pixels - self.mean) / self.std)
        return torch.cat([dino, self.siglip((pixels - 0.5) / 0.5)], dim=-1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.projector(self.features(pixels))


class PatchHeads(nn.Module):
    """What each patch shows: its thing, and the letters in its halves. Not exported."""

    def __init__(self, vision: int, kinds: int, letters: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(vision)
        self.kinds = nn.Linear(vision, kinds)
        self.letters = nn.Linear(vision, 2 * letters)

    def loss(self, features: Tensor, kinds: Tensor, letters: Tensor) -> tuple[Tensor, Tensor]:
        """Background counts less than what stands before it, for there is more of it."""
        features = self.norm(features)
        said = self.kinds(features).float().flatten(0, 1)
        read = self.letters(features).float().view(2 * kinds.numel(), -1)
        return _weighted(said, kinds.flatten(), 0.2), _weighted(read, letters.flatten(), 0.05)


def _weighted(logits: Tensor, targets: Tensor, nothing: float) -> Tensor:
    losses = F.cross_entropy(logits, targets, reduction="none")
    weights = torch.where(targets > 0, 1.0, nothing)
    return (losses * weights).sum() / weights.sum()


def load_weights(file: Path, eyes: Eyes, heads: PatchHeads | None, decoder: Decoder | None) -> None:
    """The weights that `save_weights` wrote."""
    saved = {name: w.float() for name, w in load_file(file).items()}

    def part(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): w for n, w in saved.items() if n.startswith(prefix)}

    eyes.load_state_dict(part("eyes."))
    if heads is not None:
        heads.load_state_dict(part("heads."))
    if decoder is not None and (lora := part("lora.")):
        decoder.load_adapters(lora)
