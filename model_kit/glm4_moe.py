"""GLM-4 with experts, built on mlx-lm's glm4_moe.py.

That one takes no `input_embeddings`, and reads a `rope_scaling` without heeding it. It is used in
mlx-lm's place, and gives the same to the last bit for text; weights, their names and quantization
are the same.
"""

from dataclasses import dataclass

from mlx_lm.models import glm4_moe

from model_kit.takes_embeddings import LayersTakeEmbeddings, TakesEmbeddings
from vision_add_ons.errors import UnsupportedCheckpoint


@dataclass
class ModelArgs(glm4_moe.ModelArgs):
    def __post_init__(self) -> None:
        if self.rope_scaling:
            raise UnsupportedCheckpoint(
                f"rope_scaling {self.rope_scaling} is not supported: mlx-lm's glm4_moe turns by "
                "the plain rope"
            )
        if self.n_group != 1:
            raise UnsupportedCheckpoint(
                f"n_group {self.n_group} is not supported: mlx-lm's glm4_moe chooses among groups "
                "of experts in another way"
            )
        if not 2 <= self.num_experts_per_tok <= self.n_routed_experts:
            raise UnsupportedCheckpoint(
                f"num_experts_per_tok {self.num_experts_per_tok} is not supported: mlx-lm's "
                f"glm4_moe takes 2 to all {self.n_routed_experts} experts"
            )


class LanguageModel(LayersTakeEmbeddings, glm4_moe.LanguageModel):
    pass


class Model(TakesEmbeddings, glm4_moe.Model):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        self.model = LanguageModel(args)
