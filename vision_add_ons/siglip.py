"""What the families with a SigLIP tower of mlx-vlm's share: its config, and its weights' names."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlx.nn as nn

from vision_add_ons.configs import check_fields, positive
from vision_add_ons.errors import BrokenConfig
from vision_add_ons.weights import (
    channels_last,
    first_prefix,
    load_module,
    read_weights,
    refuse_others,
    with_prefix,
)

# As published and as mlx-vlm writes them, as transformers 5 saves them, and as it has them itself.
TOWER = ("vision_tower.vision_model.", "vision_tower.", "model.vision_tower.")
PROJECTOR = ("multi_modal_projector.", "model.multi_modal_projector.")
UNUSED = ("head.", "embeddings.position_ids")


def check_siglip(vision: dict[str, Any]) -> None:
    """Refuse a `vision_config` that mlx-vlm's tower does not serve, or that cannot be built.

    Raises `UnsupportedCheckpoint` or `BrokenConfig`, naming the field.
    """
    where = "vision_config"
    check_fields(
        vision,
        where,
        model_type=("siglip_vision_model",),
        hidden_act=("gelu_pytorch_tanh",),
        num_channels=(3,),
    )
    sizes = ("image_size", "patch_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    positive(vision, where, *sizes, "num_attention_heads")
    width, heads = vision["hidden_size"], vision["num_attention_heads"]
    if width % heads:
        raise BrokenConfig(f"{where}.num_attention_heads {heads} does not divide {width}")


def load_siglip(
    tower: nn.Module,
    projector: nn.Module,
    eps: float,
    folder: Path,
    decoder_prefixes: Iterable[str],
) -> None:
    """Load mlx-vlm's `SigLipVisionModel` and a family's projector from a checkpoint's weights.

    `eps` is the config's `layer_norm_eps`. Raises `MissingWeight`, `UnexpectedWeight` or
    `UnexpectedShape` naming the tensor.
    """
    tower.post_layernorm.eps = eps  # mlx-vlm leaves its default there
    weights = read_weights(folder)
    refuse_others(weights, (*TOWER, *PROJECTOR, *decoder_prefixes))
    where = first_prefix(weights, TOWER)
    named = with_prefix(weights, where)
    named = channels_last(named, "embeddings.patch_embedding.weight", channels=3)
    load_module(tower, named, where, UNUSED)
    where = first_prefix(weights, PROJECTOR)
    load_module(projector, with_prefix(weights, where), where)
