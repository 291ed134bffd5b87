"""GLM-4, built on mlx-lm's glm4.py, which takes no `input_embeddings`.

It is used in mlx-lm's place, and gives the same to the last bit for text; weights, their names and
quantization are the same.
"""

from mlx_lm.models import glm4
from mlx_lm.models.glm4 import ModelArgs

from model_kit.takes_embeddings import LayersTakeEmbeddings, TakesEmbeddings

__all__ = ["Model", "ModelArgs"]


class Glm4Model(LayersTakeEmbeddings, glm4.Glm4Model):
    pass


class Model(TakesEmbeddings, glm4.Model):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        self.model = Glm4Model(args)
