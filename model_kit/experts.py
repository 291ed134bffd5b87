"""The matrices of experts, in the layouts in which they are found, as mlx-lm has them."""

import re

import mlx.core as mx

ALONE = re.compile(r"(.+)\.experts\.(\d+)\.(gate_proj|up_proj|down_proj)\.(weight|scales|biases)")
TOGETHER = re.compile(r"(.+)\.experts\.(gate_up_proj|down_proj)")


def experts_joined(weights: dict[str, mx.array], width: int, inner: int) -> dict[str, mx.array]:
    """The weights with those of each layer's experts as `switch_mlp`, [experts, outputs, inputs].

    `width` is the decoder's and `inner` the experts'. They are found alone, as `experts.0.up_proj`;
    or together, as `experts.gate_up_proj` and `experts.down_proj`: as transformers multiplies, or,
    as Qwen3-VL was published, with outputs and inputs the other way round.
    """
    shapes = {"gate_up_proj": (2 * inner, width), "down_proj": (width, inner)}
    joined: dict[str, mx.array] = {}
    alone: dict[str, dict[int, mx.array]] = {}
    for name, weight in weights.items():
        if found := ALONE.fullmatch(name):
            stem, number, part, end = found.groups()
            alone.setdefault(f"{stem}.switch_mlp.{part}.{end}", {})[int(number)] = weight
        elif (found := TOGETHER.fullmatch(name)) and weight.ndim == 3:
            stem, part = found.groups()
            if weight.shape[1:] != shapes[part]:
                weight = weight.swapaxes(1, 2)
            parts = {"down_proj": weight}
            if part == "gate_up_proj":
                gate, up = mx.split(weight, 2, axis=1)
                parts = {"gate_proj": gate, "up_proj": up}
            joined |= {f"{stem}.switch_mlp.{one}.weight": own for one, own in parts.items()}
        else:
            joined[name] = weight
    for name, experts in alone.items():
        joined[name] = mx.stack([experts[i] for i in sorted(experts)])
    return joined
