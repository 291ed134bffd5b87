"""Mistral as transformers computes it, by mlx-lm's llama.py.

A Mistral with a `sliding_window` (7B v0.1, and what was made of it) has it in every layer. mlx-lm's
class reads it for the layers that `layer_types` names, which such a config does not have, and needs
one layer without.
"""

from mlx_lm.models import llama
from mlx_lm.models.llama import ModelArgs

__all__ = ["Model", "ModelArgs"]


class Model(llama.Model):
    """mlx-lm's, all of whose layers slide if the config has a window."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        if args.sliding_window is not None:
            for layer in self.layers:
                layer.use_sliding = True
            self.model.swa_idx = 0
