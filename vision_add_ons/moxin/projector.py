"""The projector: fused patch features become rows of the decoder's embedding space."""

import mlx.core as mx
import mlx.nn as nn

from vision_add_ons.moxin.names import projector_name
from vision_add_ons.weights import load_module, with_prefix


class FusedMLPProjector(nn.Module):
    """Three linear layers with exact GELU between them: Prismatic's "fused-gelu-mlp".

    `vision_dim` is the width of both towers together; the first layer widens it fourfold.
    """

    def __init__(self, vision_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_dim, 4 * vision_dim)
        self.fc2 = nn.Linear(4 * vision_dim, llm_dim)
        self.fc3 = nn.Linear(llm_dim, llm_dim)

    def __call__(self, features: mx.array) -> mx.array:
        """[B, patches, vision_dim] to [B, patches, llm_dim], in the dtype of the weights."""
        return self.fc3(nn.gelu(self.fc2(nn.gelu(self.fc1(features)))))

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Native checkpoints number the layers; here they have names."""
        return {projector_name(name): weight for name, weight in weights.items()}


def load_projector(
    weights: dict[str, mx.array], prefix: str, vision_dim: int, llm_dim: int
) -> FusedMLPProjector:
    """The projector whose tensors are those of `weights` under `prefix`.

    Raises `MissingWeight`, `UnexpectedWeight` or `UnexpectedShape`.
    """
    projector = FusedMLPProjector(vision_dim, llm_dim)
    load_module(projector, projector.sanitize(with_prefix(weights, prefix)), prefix)
    return projector
