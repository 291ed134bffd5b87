"""MobileNetV5 in torch as timm's `MobileNetV5Encoder` computes it, for where timm is not installed.

`scripts/timm_tower.py` holds it against timm's own. Parameters have timm's names.
"""

import hashlib
import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

Block = dict[str, Any]
WIDTH = 2048


def width_of(channels: float) -> int:
    """timm's `make_divisible`, by 8."""
    width = max(8, int(channels + 4) // 8 * 8)
    return width + 8 if width < 0.9 * channels else width


class SameConv(nn.Conv2d):
    """Pads as TensorFlow does: before less than behind, where the two differ."""

    def __init__(self, ins: int, outs: int, kernel: int = 1, stride: int = 1, **more: Any) -> None:
        super().__init__(ins, outs, kernel, stride, **{"bias": False, **more})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        padding = []
        for size in (x.shape[3], x.shape[2]):
            covered = ((size + stride - 1) // stride - 1) * stride + kernel
            padding += [max(covered - size, 0) // 2, (max(covered - size, 0) + 1) // 2]
        return super().forward(functional.pad(x, padding))


class ChannelNorm(nn.Module):
    def __init__(self, channels: int, gelu: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.gelu = gelu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)
        x = x * self.weight[:, None, None]
        return functional.gelu(x, approximate="tanh") if self.gelu else x


def conv_norm(
    ins: int, outs: int, kernel: int = 1, stride: int = 1, gelu: bool = False, **more: Any
) -> nn.Module:
    parts = nn.Sequential()
    parts.add_module("conv", SameConv(ins, outs, kernel, stride, **more))
    parts.add_module("bn", ChannelNorm(outs, gelu))
    return parts


class LayerScale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma[:, None, None]


class Edge(nn.Sequential):
    def __init__(self, ins: int, outs: int, block: Block) -> None:
        super().__init__()
        inner = width_of(ins * block["exp_ratio"])
        kernel = block["exp_kernel_size"]
        self.add_module("conv_exp", SameConv(ins, inner, kernel, block["stride"]))
        self.add_module("bn1", ChannelNorm(inner, gelu=True))
        self.add_module("conv_pwl", SameConv(inner, outs))
        self.add_module("bn2", ChannelNorm(outs))


class Universal(nn.Sequential):
    def __init__(self, ins: int, outs: int, block: Block, scaled: bool = True) -> None:
        super().__init__()
        inner, stride = width_of(ins * block["exp_ratio"]), block["stride"]
        start, mid = block["dw_kernel_size_start"], block["dw_kernel_size_mid"]
        if start:
            first = conv_norm(ins, ins, start, 1 if mid else stride, groups=ins)
            self.add_module("dw_start", first)
        self.add_module("pw_exp", conv_norm(ins, inner, gelu=True))
        if mid:
            middle = conv_norm(inner, inner, mid, stride, gelu=True, groups=inner)
            self.add_module("dw_mid", middle)
        self.add_module("pw_proj", conv_norm(inner, outs))
        if scaled:
            self.add_module("layer_scale", LayerScale(outs))


class MultiQuery(nn.Module):
    def __init__(self, ins: int, outs: int, block: Block) -> None:
        super().__init__()
        self.heads, self.size = block["num_heads"], block["key_dim"]
        stride, kernel = block["kv_stride"], block["dw_kernel_size"]
        named = {"query": self.heads * self.size, "key": self.size, "value": block["value_dim"]}
        for name, width in named.items():
            part = nn.Sequential()
            if name != "query" and stride > 1:
                part.add_module("down_conv", SameConv(ins, ins, kernel, stride, groups=ins))
                part.add_module("norm", ChannelNorm(ins))
            part.add_module("proj", SameConv(ins, width))
            self.add_module(name, part)
        self.output = nn.Sequential()
        self.output.add_module("proj", SameConv(self.heads * block["value_dim"], outs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        queries = self.query(x).flatten(2).unflatten(1, (self.heads, self.size))
        keys, values = self.key(x).flatten(2), self.value(x).flatten(2)
        scores = torch.einsum("bhcq,bck->bhqk", queries, keys) * self.size**-0.5
        seen = torch.einsum("bhqk,bck->bhcq", scores.softmax(-1), values)
        return self.output(seen.flatten(1, 2).unflatten(2, (height, width)))


class Mobile(nn.Sequential):
    def __init__(self, ins: int, outs: int, block: Block) -> None:
        super().__init__()
        self.add_module("norm", ChannelNorm(ins))
        self.add_module("attn", MultiQuery(ins, outs, block))
        self.add_module("layer_scale", LayerScale(outs))


class Fusion(nn.Module):
    def __init__(self, ins: int, side: int) -> None:
        super().__init__()
        self.side = side
        plain = {"exp_ratio": 2, "stride": 1, "dw_kernel_size_start": 0, "dw_kernel_size_mid": 0}
        self.ffn = Universal(ins, WIDTH, plain, scaled=False)
        self.norm = ChannelNorm(WIDTH)

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        coarse = functional.interpolate(coarse, size=fine.shape[2:], mode="nearest")
        x = self.ffn(torch.cat([fine, coarse], 1))
        return self.norm(functional.avg_pool2d(x, fine.shape[2] // self.side))


class TorchMobileNetV5(nn.Module):
    """Of timm's `block_args`, `stem_size` and `msfa_output_resolution`."""

    def __init__(
        self, block_args: list[list[Block]], stem_size: int, msfa_output_resolution: int
    ) -> None:
        super().__init__()
        width = width_of(stem_size)
        self.conv_stem = conv_norm(3, width, 3, 2, gelu=True, bias=True)
        kinds = {"er": Edge, "uir": Universal, "mqa": Mobile}
        self.blocks = nn.ModuleList()
        self.skips: list[list[bool]] = []
        ends = []
        for stage in block_args:
            self.blocks.append(nn.ModuleList())
            self.skips.append([])
            for block in stage:
                outs = width_of(block["out_chs"])
                self.blocks[-1].append(kinds[block["block_type"]](width, outs, block))
                self.skips[-1].append(block["stride"] == 1 and width == outs)
                width = outs
            ends.append(width)
        self.msfa = Fusion(ends[-2] + ends[-1], msfa_output_resolution)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [batch, 3, height, width] to [batch, 2048, side, side]."""
        x = self.conv_stem(x)
        ends = []
        for stage, skips in zip(self.blocks, self.skips, strict=True):
            for block, skip in zip(stage, skips, strict=True):
                x = block(x) + x if skip else block(x)
            ends.append(x)
        return self.msfa(*ends[-2:])


def drawn_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """float32 for each name, alike on every machine and with every version of NumPy."""
    draw = np.random.RandomState(seed)
    drawn = {}
    for name, shape in sorted(shapes.items()):
        values = draw.standard_normal(shape).astype(np.float32)
        spread = 1.2 / math.sqrt(math.prod(shape[1:]))
        drawn[name] = values * np.float32(spread) if len(shape) > 1 else 1 + values / 5
    return drawn


def drawn_pixels(seed: int, side: int) -> np.ndarray:
    """float32 [side, side, 3] from 0 to 1."""
    return np.random.RandomState(seed).random_sample((side, side, 3)).astype(np.float32)


def digest(shapes: dict[str, tuple[int, ...]]) -> str:
    """Of all names and shapes, as torch has them."""
    lines = [f"{name} {list(shape)}" for name, shape in sorted(shapes.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def computed(tower: nn.Module, seed: int, side: int) -> np.ndarray:
    """What a tower of torch with weights drawn so makes of pixels drawn so: [places, 2048].

    Changes the tower.
    """
    shapes = {name: tuple(w.shape) for name, w in tower.state_dict().items()}
    weights = drawn_weights(shapes, seed)
    tower.load_state_dict({name: torch.tensor(w) for name, w in weights.items()})
    pixels = torch.tensor(drawn_pixels(seed, side)).permute(2, 0, 1)[None]
    with torch.no_grad():
        return tower.eval()(pixels)[0].flatten(1).T.numpy()
