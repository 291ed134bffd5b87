"""What the families with a SigLIP tower share: its layers and, of mlx-vlm's, config and weights."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from vision_add_ons.configs import check_fields
from vision_add_ons.graph_bytes import graph_bytes
from vision_add_ons.siglip_layers import check_layers
from vision_add_ons.tower_bytes import Costs, conv_bytes, most_of
from vision_add_ons.vit_blocks import Block, Cutting, Heads, Tables, by_heads, in_pieces, run_blocks
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
    check_fields(vision, "vision_config", model_type=("siglip_vision_model",))
    check_layers(vision, "image_size", "patch_size")


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


def siglip_features(tower: nn.Module, pixels: mx.array, cutting: Cutting) -> mx.array:
    """What mlx-vlm's `SigLipVisionModel` makes of one picture: [patches, width].

    `pixels` is [side, side, 3].
    """
    dtype = tower.post_layernorm.weight.dtype
    embedded = tower.embeddings(pixels[None].astype(dtype)).squeeze(0)
    rows = in_pieces(embedded, cutting.pieces([1] * len(embedded)))
    del embedded
    run_blocks(rows, [siglip_block(layer) for layer in tower.encoder.layers], cutting)
    whole = mx.concatenate(rows)
    rows.clear()
    return tower.post_layernorm(whole)


def siglip_costs(tower: nn.Module, projector: nn.Module) -> tuple[Costs, int]:
    """What a row takes in the tower's blocks, and all rows behind them; see `siglip_bytes`."""
    embeddings, layer = tower.embeddings, tower.encoder.layers[0]
    dtype = tower.post_layernorm.weight.dtype
    width, heads = embeddings.embed_dim, layer.self_attn.num_heads
    behind = graph_bytes(
        lambda x: projector(tower.post_layernorm(x)),
        mx.zeros((1, embeddings.num_positions, width), dtype),
        modules=[tower.post_layernorm, projector],
    )
    return Costs.of(layer, siglip_block(layer), width, heads, dtype), behind


def siglip_bytes(tower: nn.Module, costs: tuple[Costs, int], cutting: Cutting) -> int:
    """The most bytes beside the weights that a picture takes on its way to the projector's rows."""
    row, behind = costs
    total, pixels = tower.embeddings.num_positions, tower.embeddings.image_size**2 * 3
    kernel = tower.embeddings.patch_embedding.weight
    # The pixels in float32 are there all the time.
    return 4 * pixels + most_of(
        total,
        cutting,
        conv_bytes(kernel, total) + 3 * total * row.row,
        row.most(total, cutting, len(tower.encoder.layers)),
        2 * total * row.row + behind,
    )


def siglip_block(layer: nn.Module, windowed: bool = False) -> Block:
    """One layer of a SigLIP, whose parts have the names that they have in transformers."""
    attention = layer.self_attn

    def heads(x: mx.array, tables: Tables | None) -> Heads:
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        queries, keys, values = by_heads(layer.layer_norm1(x), attention.num_heads, *projections)
        return queries, keys, values

    def rest(x: mx.array, seen: mx.array) -> mx.array:
        x = x + attention.out_proj(seen)
        return x + layer.mlp(layer.layer_norm2(x))

    return Block(heads, rest, windowed)
