"""What a `vision_config` says of MobileNetV5's blocks.

The tower's sizes follow from the name of its architecture in timm, and from `model_args`, which
timm's `create_model` is given: `block_args` describe blocks there, of which the defaults are those
of the published checkpoints.
"""

from dataclasses import dataclass
from typing import Any

from vision_add_ons.configs import check_fields, positive
from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint

ARCHITECTURE = "mobilenetv5_300m_enc"
WIDTH = 2048
"""Of what the tower gives; timm has no other."""

Blocks = list[list[dict[str, Any]]]
"""By stages, in timm's words."""

SIZES = {
    "er": ("exp_kernel_size",),
    "uir": ("dw_kernel_size_start", "dw_kernel_size_mid"),
    "mqa": ("num_heads", "key_dim", "value_dim", "kv_stride", "dw_kernel_size"),
}
"""What a block of each type has beside its `out_chs`, `stride` and `exp_ratio`: whole numbers."""
ABSENT = ("dw_kernel_size_start", "dw_kernel_size_mid")
"""Those that may be 0: then there is no such convolution."""
FIXED = {
    "act_layer": (None,),
    "noskip": (None, False),
    "se_ratio": (None, 0),
    "force_in_chs": (None, 0),
    "pw_kernel_size": (None, 1),
    "dw_kernel_size_end": (None, 0),
}


def _edge(width: int, stride: int = 1) -> dict[str, Any]:
    sizes = {"exp_kernel_size": 3, "exp_ratio": 4.0}
    return {"block_type": "er", "out_chs": width, "stride": stride, **sizes}


def _inverted(
    width: int, start: int = 0, mid: int = 0, ratio: float = 4.0, stride: int = 1
) -> dict[str, Any]:
    sizes = {"dw_kernel_size_start": start, "dw_kernel_size_mid": mid, "exp_ratio": ratio}
    return {"block_type": "uir", "out_chs": width, "stride": stride, **sizes}


def _attending(width: int, heads: int, head: int, coarser: int, times: int) -> list[dict[str, Any]]:
    sizes = {"num_heads": heads, "key_dim": head, "value_dim": head}
    sizes |= {"kv_stride": coarser, "dw_kernel_size": 3}
    block = {"block_type": "mqa", "out_chs": width, "stride": 1, **sizes}
    return [block, _inverted(width, ratio=2.0)] * times


PUBLISHED: Blocks = [
    [_edge(128, stride=2), _edge(128), _edge(128)],
    [_inverted(256, 3, 5, 6.0, stride=2), *(_inverted(256, start) for start in (5, 3, 5, 3))],
    [
        _inverted(640, 5, 5, 6.0, stride=2),
        *[_inverted(640, 5)] * 7,
        _inverted(640, ratio=1.0),
        *_attending(640, 12, 64, coarser=2, times=14),
    ],
    [_inverted(1280, 5, 5, 6.0, stride=2), *_attending(1280, 16, 96, coarser=1, times=19)],
]


@dataclass(frozen=True)
class TowerConfig:
    """MobileNetV5 with a `stem` of so many channels and these `blocks`, whose last two stages
    become `side` x `side` rows."""

    stem: int
    blocks: Blocks
    side: int

    @classmethod
    def read(cls, vision: dict[str, Any]) -> "TowerConfig":
        """Of a complete `vision_config`.

        Raises `UnsupportedCheckpoint` or `BrokenConfig`, naming the field.
        """
        where = "vision_config"
        check_fields(vision, where, architecture=(ARCHITECTURE,), hidden_size=(WIDTH,))
        where = f"{where}.model_args"
        given = vision["model_args"] or {}
        args = {"stem_size": 64, "block_args": PUBLISHED, "msfa_output_resolution": 16, **given}
        known = ("stem_size", "block_args", "msfa_output_resolution")
        if others := sorted({*args} - {*known}):
            raise UnsupportedCheckpoint(
                f"{where}.{others[0]} is not supported (only {', '.join(known)})"
            )
        positive(args, where, "stem_size", "msfa_output_resolution")
        blocks = args["block_args"]
        lists = isinstance(blocks, list) and all(isinstance(stage, list) for stage in blocks)
        if not lists or len(blocks) != 4 or not all(blocks):
            raise UnsupportedCheckpoint(f"{where}.block_args must be four lists of blocks")
        for i, stage in enumerate(blocks):
            for j, block in enumerate(stage):
                _check_block(block, f"{where}.block_args[{i}][{j}]", stride=1 if j else 2)
        return cls(divisible(args["stem_size"]), blocks, args["msfa_output_resolution"])

    @property
    def unit(self) -> int:
        """What pictures' sides must be multiples of, in pixels."""
        return 16 * self.side


def divisible(channels: float) -> int:
    """The next multiple of 8, but not 10 percent less: so many channels timm's layers have."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near if near >= 0.9 * channels else near + 8


def _check_block(block: Any, where: str, stride: int) -> None:
    if not isinstance(block, dict):
        raise BrokenConfig(f"{where} must be an object, not {block!r:.40}")
    check_fields(block, where, block_type=tuple(SIZES), stride=(stride,))
    kind = block["block_type"]
    if kind == "mqa" and stride != 1:
        raise UnsupportedCheckpoint(f"{where}.block_type 'mqa' cannot begin a stage")
    ratio = () if kind == "mqa" else ("exp_ratio",)
    known = ("block_type", "stride", "out_chs", *SIZES[kind], *ratio)
    if others := sorted({*block} - {*known, *FIXED}):
        raise UnsupportedCheckpoint(f"{where}.{others[0]} is not supported")
    check_fields(block, where, **FIXED)
    positive(
        block, where, "out_chs", *(n for n in SIZES[kind] if block.get(n) != 0 or n not in ABSENT)
    )
    if ratio and not (isinstance(block.get("exp_ratio"), int | float) and block["exp_ratio"] > 0):
        raise BrokenConfig(f"{where}.exp_ratio must be a number above 0")
    if kind == "uir" and stride != 1 and not any(block[name] for name in ABSENT):
        raise BrokenConfig(f"{where} must have a dw_kernel_size to stride by")
