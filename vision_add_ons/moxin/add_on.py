"""The add-on itself: names of a checkpoint's parts, and one picture's way through them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx

from vision_add_ons.base import Picture, VisionAddOn, with_markers
from vision_add_ons.errors import UnsupportedCheckpoint
from vision_add_ons.graph_bytes import graph_bytes
from vision_add_ons.moxin import config as moxin_config
from vision_add_ons.moxin.names import PROJECTOR, TOWERS, published_name
from vision_add_ons.moxin.preprocessing import read_recipes
from vision_add_ons.moxin.projector import load_projector
from vision_add_ons.moxin.prompt import chat_template, has_own_template
from vision_add_ons.moxin.vit import load_vit_encoder
from vision_add_ons.moxin.vit_config import ViTConfig
from vision_add_ons.weights import read_weights, refuse_others


class MoxinAddOn(VisionAddOn):
    """Moxin VLM, that is Prismatic with DINOv2, SigLIP and Mistral.

    Each picture gives one row per patch (256 at 224 pixels): the features of both towers side by
    side, projected. The pictures of a user turn stand at the very start of that turn, block after
    block in the order given: right after BOS for the first turn, as in the original, and right
    after the `</s>` that ends the previous answer for later ones, which the original does not
    define. No token marks them.

    The dtype of towers, projector and rows is that of the checkpoint. Towers smaller than the
    published ones load by the sizes of their tensors; their heads are `dino_num_heads` and
    `siglip_num_heads` of config.json, else 64 wide.
    """

    model_types = ("prismatic", "moxin")
    decoder_prefixes: ClassVar = {"language_model.": "", "llm_backbone.llm.": ""}
    images_at_once = 8

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """Load both towers and the projector from `folder`; their tensors are read when used.

        Raises a `CheckpointError`: `UnsupportedCheckpoint` or `BrokenConfig` naming the field,
        `MissingWeight`, `UnexpectedWeight` or `UnexpectedShape` naming the tensor.
        """
        moxin_config.check_served(config)
        size = moxin_config.image_size(config)
        self.dino_recipe, self.siglip_recipe = read_recipes(folder, config, size)
        self.placeholder_id = moxin_config.placeholder_id(config)
        self.own_template = not has_own_template(folder)

        weights = read_weights(folder)
        dino, siglip = _tower_prefixes(weights)
        refuse_others(weights, (*self.decoder_prefixes, dino, siglip, PROJECTOR))

        heads = [moxin_config.num_heads(config, tower) for tower in ("dino", "siglip")]
        dino_config = ViTConfig.dinov2_large().fitted(weights, dino, size, heads[0])
        siglip_config = ViTConfig.siglip_so400m().fitted(weights, siglip, size, heads[1])
        if dino_config.num_patches != siglip_config.num_patches:
            raise UnsupportedCheckpoint(
                f"the towers cut {dino_config.num_patches} and {siglip_config.num_patches} "
                "patches; only towers with the same patches can be fused"
            )
        self.dino = load_vit_encoder(weights, dino, dino_config)
        self.siglip = load_vit_encoder(weights, siglip, siglip_config)
        vision_dim = dino_config.embed_dim + siglip_config.embed_dim
        hidden_size = self.decoder_config(config)[0]["hidden_size"]
        self.projector = load_projector(weights, PROJECTOR, vision_dim, hidden_size)
        features = mx.zeros((1, dino_config.num_patches, vision_dim), self.dino.pos_embed.dtype)
        projected = graph_bytes(self.projector, features, modules=[self.projector])
        # All of it is evaluated at once.
        towers = self.dino.most_bytes() + self.siglip.most_bytes()
        self.most_bytes = features.nbytes + towers + projected

    @classmethod
    def decoder_config(cls, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        return moxin_config.decoder_config(config)

    @classmethod
    def published_name(cls, name: str) -> str:
        """The name in the Hugging Face conversion, of a native one."""
        return published_name(name)

    @classmethod
    def published_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        return {**config, "text_config": cls.decoder_config(config)[0]}

    @classmethod
    def default_chat_template(cls, config: dict[str, Any], folder: Path) -> str:
        """`In: ...\\nOut:`, or `[INST] ... [/INST]` for a model that is called "instruct"."""
        return chat_template(config, folder)

    def place_images(self, message: dict[str, Any], markers: Sequence[str]) -> dict[str, Any]:
        """Our own templates place `images`; in another's, markers stand among the texts."""
        if not self.own_template:
            return with_markers(message, markers)
        texts = [part for part in message["content"] if part["type"] == "text"]
        return {**message, "content": texts, "images": list(markers)}

    def picture_limits(self) -> list[str]:
        recipe, rows = self.dino_recipe, self.dino.config.num_patches
        return [f"{recipe.strategy} to {recipe.size} x {recipe.size} pixels, {rows} rows each"]

    def row_count(self, picture: Picture) -> int:
        """One row per patch. Raises `ImageError` for a picture that preprocessing would refuse."""
        self.dino_recipe.check(picture.size)
        return self.dino.config.num_patches

    def tower_bytes(self, size: tuple[int, int]) -> int:
        self.dino_recipe.check(size)
        return self.most_bytes

    def encode_image(self, picture: Picture) -> mx.array:
        return self.encode_images([picture])[0]

    def encode_images(self, pictures: Sequence[Picture]) -> list[mx.array]:
        images = [picture.pixels() for picture in pictures]
        dino = self.dino(mx.stack([self.dino_recipe(image) for image in images]))
        siglip = self.siglip(mx.stack([self.siglip_recipe(image) for image in images]))
        features = mx.concatenate([dino, siglip], axis=-1)
        # Each on its own, so that an image's rows hold no others' in memory.
        return [self.projector(features[i : i + 1])[0] for i in range(len(images))]


def _tower_prefixes(weights: dict[str, mx.array]) -> tuple[str, str]:
    return next((pair for pair in TOWERS if any(n.startswith(pair) for n in weights)), TOWERS[-1])
