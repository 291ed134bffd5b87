"""The architecture of a tower: as published, or as a checkpoint's tensors show it."""

import re
from dataclasses import dataclass, replace

import mlx.core as mx

from vision_add_ons.errors import MissingWeight, UnexpectedShape, UnsupportedCheckpoint


@dataclass(frozen=True)
class ViTConfig:
    """The architecture of one tower. `has_class_position`: `pos_embed` starts with one for cls."""

    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    has_cls_token: bool
    num_registers: int
    has_layer_scale: bool
    has_class_position: bool = False
    image_size: int = 224
    patch_size: int = 14

    @classmethod
    def dinov2_large(cls) -> "ViTConfig":
        """timm's vit_large_patch14_reg4_dinov2.lvd142m at 224 pixels."""
        return cls(1024, 24, 16, 4096, has_cls_token=True, num_registers=4, has_layer_scale=True)

    @classmethod
    def siglip_so400m(cls) -> "ViTConfig":
        """timm's vit_so400m_patch14_siglip_224."""
        return cls(1152, 27, 16, 4304, has_cls_token=False, num_registers=0, has_layer_scale=False)

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def fitted(
        self, weights: dict[str, mx.array], prefix: str, image_size: int, num_heads: int | None
    ) -> "ViTConfig":
        """This architecture in the sizes of the tensors under `prefix`.

        A tower as wide as the published one is the published one: any other difference is then
        left for loading to report. The number of heads shows in no tensor: `num_heads` if given,
        else heads 64 wide. Raises `MissingWeight`, `UnexpectedShape` or `UnsupportedCheckpoint`.
        """
        width, channels, patch, across = _shape(weights, prefix + "patch_embed.proj.weight", 4)
        if channels != 3 or patch != across:
            raise UnexpectedShape(
                f"{prefix}patch_embed.proj.weight has shape {(width, channels, patch, across)}, "
                "but must be (width, 3, patch size, patch size)"
            )
        config = replace(self, image_size=image_size, num_heads=num_heads or self.num_heads)
        if width != self.embed_dim:
            if num_heads is None and width % 64:
                raise UnsupportedCheckpoint(
                    f"{prefix}* is {width} wide, no published size: config.json must give its "
                    "number of heads as dino_num_heads or siglip_num_heads"
                )
            registers = "reg_token" if prefix + "reg_token" in weights else "register_tokens"
            block = re.compile(re.escape(prefix) + r"blocks\.(\d+)\.")
            config = replace(
                config,
                embed_dim=width,
                patch_size=patch,
                depth=1 + max((int(m[1]) for m in map(block.match, weights) if m), default=0),
                num_heads=num_heads or width // 64,
                mlp_dim=_shape(weights, prefix + "blocks.0.mlp.fc1.weight", 2)[0],
                num_registers=self.num_registers and _shape(weights, prefix + registers, 3)[1],
            )
        if config.depth < 2:
            raise UnsupportedCheckpoint(
                f"{prefix}blocks: features come from the last block but one, and there is only one"
            )
        if width % config.num_heads:
            raise UnexpectedShape(
                f"{prefix}* is {width} wide: no {config.num_heads} heads fit it, whether of "
                "dino_num_heads and siglip_num_heads of config.json or as published"
            )
        positions = _shape(weights, prefix + "pos_embed", 3)[1]
        if positions not in (config.num_patches, config.num_patches + self.has_cls_token):
            raise UnexpectedShape(
                f"{prefix}pos_embed has {positions} positions, but a picture of {image_size} "
                f"pixels has {config.num_patches} patches of {config.patch_size}"
            )
        return replace(config, has_class_position=positions > config.num_patches)


def _shape(weights: dict[str, mx.array], name: str, ndim: int) -> tuple[int, ...]:
    if name not in weights:
        raise MissingWeight(f"the checkpoint lacks {name}")
    if weights[name].ndim != ndim:
        raise UnexpectedShape(f"{name} has shape {weights[name].shape}, not {ndim} dimensions")
    return weights[name].shape
