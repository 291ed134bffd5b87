"""MobileNetV5, the convolutional tower of Gemma 3n.

Semantics: timm's `MobileNetV5Encoder` (1.0.31), which transformers wraps. Ours, because mlx-vlm's
has the erf GELU where timm has the tanh one, other epsilons, and the published sizes alone.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from vision_add_ons.gemma3n.config import WIDTH, TowerConfig, divisible
from vision_add_ons.graph_bytes import graph_bytes

EPS = 1e-6


class Conv(nn.Conv2d):
    """Padded so that `stride` alone decides the size, with what is odd behind (TensorFlow's)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        side: int = 1,
        stride: int = 1,
        depthwise: bool = False,
        bias: bool = False,
    ) -> None:
        groups = inputs if depthwise else 1
        super().__init__(inputs, outputs, side, stride, groups=groups, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        """From [1, height, width, inputs] to [1, height / stride, width / stride, outputs]."""
        side, stride = self.weight.shape[1], self.stride[0]
        missing = [max((-(-n // stride) - 1) * stride + side - n, 0) for n in x.shape[1:3]]
        if any(missing):
            x = mx.pad(x, [(0, 0), *((n // 2, n - n // 2) for n in missing), (0, 0)])
        return super().__call__(x)


class Norm(nn.RMSNorm):
    """Over the channels, with or without GELU behind it."""

    def __init__(self, channels: int, activated: bool = False) -> None:
        super().__init__(channels, EPS)
        self.activated = activated

    def __call__(self, x: mx.array) -> mx.array:
        x = super().__call__(x)
        return nn.gelu_approx(x) if self.activated else x


class ConvNorm(nn.Module):
    def __init__(
        self,
        inputs: int,
        outputs: int,
        side: int = 1,
        stride: int = 1,
        activated: bool = False,
        **options: bool,
    ) -> None:
        super().__init__()
        self.conv = Conv(inputs, outputs, side, stride, **options)
        self.bn = Norm(outputs, activated)

    def __call__(self, x: mx.array) -> mx.array:
        return self.bn(self.conv(x))


class Scale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = mx.ones((channels,))

    def __call__(self, x: mx.array) -> mx.array:
        return x * self.gamma


class EdgeResidual(nn.Module):
    """timm's block "er"."""

    def __init__(self, inputs: int, outputs: int, block: dict[str, Any]) -> None:
        super().__init__()
        inner = divisible(inputs * block["exp_ratio"])
        self.skips = inputs == outputs and block["stride"] == 1
        self.conv_exp = Conv(inputs, inner, block["exp_kernel_size"], block["stride"])
        self.bn1 = Norm(inner, activated=True)
        self.conv_pwl = Conv(inner, outputs)
        self.bn2 = Norm(outputs)

    def __call__(self, x: mx.array) -> mx.array:
        made = self.bn2(self.conv_pwl(self.bn1(self.conv_exp(x))))
        return made + x if self.skips else made


class InvertedResidual(nn.Module):
    """timm's block "uir": up to two convolutions of each channel alone, around one that widens."""

    def __init__(
        self, inputs: int, outputs: int, block: dict[str, Any], alone: bool = False
    ) -> None:
        super().__init__()
        inner, stride = divisible(inputs * block["exp_ratio"]), block["stride"]
        start, mid = block["dw_kernel_size_start"], block["dw_kernel_size_mid"]
        self.skips = inputs == outputs and stride == 1 and not alone
        if start:
            own = 1 if mid else stride
            self.dw_start = ConvNorm(inputs, inputs, start, own, depthwise=True)
        self.pw_exp = ConvNorm(inputs, inner, activated=True)
        if mid:
            self.dw_mid = ConvNorm(inner, inner, mid, stride, activated=True, depthwise=True)
        self.pw_proj = ConvNorm(inner, outputs)
        if not alone:
            self.layer_scale = Scale(outputs)

    def __call__(self, x: mx.array) -> mx.array:
        made = x
        for name in ("dw_start", "pw_exp", "dw_mid", "pw_proj", "layer_scale"):
            if name in self:
                made = self[name](made)
        return made + x if self.skips else made


class Projection(nn.Module):
    """To keys or values, of a coarser picture where `stride` is more than 1."""

    def __init__(self, inputs: int, outputs: int, side: int = 1, stride: int = 1) -> None:
        super().__init__()
        if stride > 1:
            self.down_conv = Conv(inputs, inputs, side, stride, depthwise=True)
            self.norm = Norm(inputs)
        self.proj = Conv(inputs, outputs)

    def __call__(self, x: mx.array) -> mx.array:
        if "down_conv" in self:
            x = self.norm(self.down_conv(x))
        return self.proj(x)


class MultiQuery(nn.Module):
    """Attention of all places to all, with one head of keys and values."""

    def __init__(self, inputs: int, outputs: int, block: dict[str, Any]) -> None:
        super().__init__()
        self.heads = block["num_heads"]
        coarser = block["dw_kernel_size"], block["kv_stride"]
        self.query = Projection(inputs, self.heads * block["key_dim"])
        self.key = Projection(inputs, block["key_dim"], *coarser)
        self.value = Projection(inputs, block["value_dim"], *coarser)
        self.output = Projection(self.heads * block["value_dim"], outputs)

    def __call__(self, x: mx.array) -> mx.array:
        queries = mx.unflatten(self.query(x).flatten(1, 2), -1, (self.heads, -1)).swapaxes(1, 2)
        keys, values = (part(x).flatten(1, 2)[:, None] for part in (self.key, self.value))
        scale = keys.shape[-1] ** -0.5
        seen = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale)
        return self.output(seen.swapaxes(1, 2).reshape(*x.shape[:3], -1))


class Attending(nn.Module):
    """timm's block "mqa"."""

    def __init__(self, inputs: int, outputs: int, block: dict[str, Any]) -> None:
        super().__init__()
        self.skips = inputs == outputs
        self.norm = Norm(inputs)
        self.attn = MultiQuery(inputs, outputs, block)
        self.layer_scale = Scale(outputs)

    def __call__(self, x: mx.array) -> mx.array:
        made = self.layer_scale(self.attn(self.norm(x)))
        return made + x if self.skips else made


KINDS = {"er": EdgeResidual, "uir": InvertedResidual, "mqa": Attending}


class Fusion(nn.Module):
    """The last two stages side by side, widened, and averaged to `side` x `side` places."""

    def __init__(self, inputs: int, side: int) -> None:
        super().__init__()
        self.side = side
        sizes = {"exp_ratio": 2.0, "stride": 1, "dw_kernel_size_start": 0, "dw_kernel_size_mid": 0}
        self.ffn = InvertedResidual(inputs, WIDTH, sizes, alone=True)
        self.norm = Norm(WIDTH)

    def __call__(self, fine: mx.array, coarse: mx.array) -> mx.array:
        for axis in (1, 2):  # each place is that of the nearest above it
            places = mx.arange(fine.shape[axis]) * coarse.shape[axis] // fine.shape[axis]
            coarse = mx.take(coarse, places, axis)
        made = self.ffn(mx.concatenate([fine, coarse], axis=-1))
        cut = mx.unflatten(mx.unflatten(made, 2, (self.side, -1)), 1, (self.side, -1))
        return self.norm(cut.mean((2, 4)))


class MobileNetV5(nn.Module):
    """The tower that a `vision_config` describes."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.conv_stem = ConvNorm(3, config.stem, 3, 2, activated=True, bias=True)
        self.blocks: list[list[nn.Module]] = []
        width, ends = config.stem, []
        for stage in config.blocks:
            self.blocks.append([])
            for block in stage:
                inputs, width = width, divisible(block["out_chs"])
                self.blocks[-1].append(KINDS[block["block_type"]](inputs, width, block))
            ends.append(width)
        self.msfa = Fusion(sum(ends[-2:]), config.side)

    @property
    def stages(self) -> list[list[nn.Module]]:
        """What follows each other, the stem first."""
        return [[self.conv_stem], *self.blocks]

    def __call__(self, pixels: mx.array) -> mx.array:
        """From [height, width, 3] to [side, side, 2048], evaluated block by block: what is made on
        the way is large."""
        x = pixels[None].astype(self.msfa.norm.weight.dtype)
        for stage in self.stages:
            fine = x  # what the stage before ended with
            for part in stage:
                x = part(x)
                mx.eval(x)
        return self.msfa(fine, x)[0]


def most_bytes(tower: MobileNetV5, embedder: nn.Module, side: int) -> int:
    """The most bytes beside the weights that a picture of `side` x `side` pixels takes on its way
    to the rows that `embedder` makes.

    To be asked when the tower is loaded, before anybody uses it.
    """
    dtype = tower.msfa.norm.weight.dtype
    told: dict[str, int] = {}

    def bytes_of(part: nn.Module, *inputs: mx.array) -> int:
        like = f"{part} {[x.shape for x in inputs]}"  # most blocks are like another
        if like not in told:
            told[like] = graph_bytes(part, *inputs, modules=[part])
        return told[like]

    x = fine = mx.zeros((1, side, side, 3), dtype)
    pixels, most = 4 * x.size, 0  # in float32, and there all the time
    for stage in tower.stages:
        fine = x
        for part in stage:
            most = max(most, pixels + fine.nbytes + x.nbytes + bytes_of(part, x))
            x = mx.zeros(part(x).shape, dtype)
    rows = mx.zeros((tower.msfa.side**2, WIDTH), dtype)
    end = fine.nbytes + x.nbytes + bytes_of(tower.msfa, fine, x) + rows.nbytes
    return max(most, pixels + end + bytes_of(embedder, rows))
