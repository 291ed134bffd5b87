"""LLaVA 1.5: a CLIP tower whose features a small projector turns into rows for Llama or Mistral.

Semantics: transformers' `LlavaForConditionalGeneration` and `CLIPImageProcessorPil`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from PIL import Image

from vision_add_ons import weights as checkpoint
from vision_add_ons.base import Picture, VisionAddOn
from vision_add_ons.configs import check_fields, feature_states, positive, resolve_config
from vision_add_ons.errors import ImageError
from vision_add_ons.pixels import CLIP_MEAN, CLIP_STD, USUAL_SIDE, Pixels, read_processor_config

ACTIVATIONS = {"gelu": nn.gelu, "quick_gelu": nn.gelu_fast_approx}

# What precedes the weights' names: as published, as transformers 5 has them on disk and in memory.
TOWER = ("vision_tower.vision_model.", "vision_tower.", "model.vision_tower.")
PROJECTOR = ("multi_modal_projector.", "model.multi_modal_projector.")


def group(**parts: nn.Module | mx.array | list[nn.Module]) -> nn.Module:
    """A module that only holds others, under the names that the weights have."""
    module = nn.Module()
    for name, part in parts.items():
        setattr(module, name, part)
    return module


class Layer(nn.Module):
    """One layer of the tower, whose tokens all see each other."""

    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        width, inner, eps = (
            vision[field] for field in ("hidden_size", "intermediate_size", "layer_norm_eps")
        )
        self.heads = vision["num_attention_heads"]
        self.activation = ACTIVATIONS[vision["hidden_act"]]
        self.layer_norm1 = nn.LayerNorm(width, eps)
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        self.self_attn = group(**{name: nn.Linear(width, width) for name in names})
        self.layer_norm2 = nn.LayerNorm(width, eps)
        self.mlp = group(fc1=nn.Linear(width, inner), fc2=nn.Linear(inner, width))

    def __call__(self, x: mx.array) -> mx.array:
        attention, normed = self.self_attn, self.layer_norm1(x)
        queries, keys, values = (
            mx.unflatten(project(normed), -1, (self.heads, -1)).swapaxes(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        seen = mx.fast.scaled_dot_product_attention(
            queries, keys, values, scale=queries.shape[-1] ** -0.5
        )
        x = x + attention.out_proj(seen.swapaxes(1, 2).flatten(2))
        return x + self.mlp.fc2(self.activation(self.mlp.fc1(self.layer_norm2(x))))


class ClipTower(nn.Module):
    """The tower that a `vision_config` describes."""

    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        width, patch, eps = (
            vision[field] for field in ("hidden_size", "patch_size", "layer_norm_eps")
        )
        self.embeddings = group(
            class_embedding=mx.zeros(width),
            patch_embedding=nn.Conv2d(3, width, patch, patch, bias=False),
            position_embedding=nn.Embedding((vision["image_size"] // patch) ** 2 + 1, width),
        )
        self.pre_layrnorm = nn.LayerNorm(width, eps)  # spelt as the checkpoints have it
        self.encoder = group(layers=[Layer(vision) for _ in range(vision["num_hidden_layers"])])
        self.post_layernorm = nn.LayerNorm(width, eps)  # behind what LLaVA takes

    def __call__(self, pixels: mx.array, states: Sequence[int]) -> mx.array:
        """Features [n, 1 + patches, len(states) * hidden_size] of pixels [n, side, side, 3].

        The class token's come first. `states` says after how many layers features are taken.
        """
        embeddings, count = self.embeddings, len(pixels)
        patches = embeddings.patch_embedding(pixels).flatten(1, 2)
        first = mx.broadcast_to(embeddings.class_embedding, (count, 1, patches.shape[-1]))
        x = mx.concatenate([first, patches], axis=1)
        x = x + embeddings.position_embedding(mx.arange(x.shape[1]))
        features = [self.pre_layrnorm(x)]
        for layer in self.encoder.layers[: max(states)]:
            features.append(layer(features[-1]))
        return mx.concatenate([features[i] for i in states], axis=-1)


class Projector(nn.Module):
    def __init__(self, whole: dict[str, Any], inputs: int) -> None:
        super().__init__()
        width, bias = whole["text_config"]["hidden_size"], whole["multimodal_projector_bias"]
        self.activation = ACTIVATIONS[whole["projector_hidden_act"]]
        self.linear_1 = nn.Linear(inputs, width, bias=bias)
        self.linear_2 = nn.Linear(width, width, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_2(self.activation(self.linear_1(x)))


# For checkpoints that bring no chat template: how a decoder is asked, and how it is to answer.
TURNS = {"llama": ("USER: ", " ASSISTANT:"), "mistral": ("[INST] ", " [/INST]")}
CHAT_TEMPLATE = """\
{%%- set ask, answer = %r -%%}
{{- bos_token -}}
{%%- for message in messages -%%}
  {%%- set parts = message['content'] -%%}
  {%%- set text = parts if parts is string
                  else parts | map(attribute='text', default='') | join -%%}
  {%%- if message['role'] == 'system' -%%}{{- text + ' ' -}}
  {%%- elif message['role'] == 'assistant' -%%}{{- ' ' + text + eos_token -}}
  {%%- else -%%}
    {{- ask -}}
    {%%- for part in parts if part['type'] == 'image' -%%}{{- '<image>\\n' -}}{%%- endfor -%%}
    {{- text + answer -}}
  {%%- endif -%%}
{%%- endfor -%%}
"""


class LlavaAddOn(VisionAddOn):
    """The middle square of a picture becomes one row for each patch."""

    model_types = ("llava",)
    image_marks = ("<image>",)

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """Load the tower and the projector from `folder`. Raises a `CheckpointError`."""
        whole, processor = resolve_config(config), read_processor_config(folder)
        self.check(whole, processor)
        vision = whole["vision_config"]
        self.side, self.patches = vision["image_size"], vision["image_size"] // vision["patch_size"]
        self.states = feature_states(whole["vision_feature_layer"], vision["num_hidden_layers"])
        self.skipped = 1 if whole["vision_feature_select_strategy"] == "default" else 0
        self.placeholder_id = self.image_token_id = whole["image_token_index"]
        self.pixels = Pixels.read(processor, Image.Resampling.BICUBIC, CLIP_MEAN, CLIP_STD)
        self.tower = ClipTower(vision)
        self.projector = Projector(whole, len(self.states) * vision["hidden_size"])
        self.load(checkpoint.read_weights(folder))

    def check(self, whole: dict[str, Any], processor: dict[str, Any]) -> None:
        """Refuse what the reference would compute otherwise."""
        vision, known = whole["vision_config"], tuple(ACTIVATIONS)
        check_fields(vision, "vision_config", model_type=("clip_vision_model",))
        check_fields(vision, "vision_config", hidden_act=known, num_channels=(3,))
        positive(vision, "vision_config", "image_size", "patch_size", "num_attention_heads")
        positive(vision, "vision_config", "hidden_size", "intermediate_size", "num_hidden_layers")
        check_fields(whole, "config", projector_hidden_act=known)
        positive(whole, "config", "image_token_index")
        side = vision["image_size"]
        check_fields(
            {"size": USUAL_SIDE, "crop_size": USUAL_SIDE, "do_center_crop": True, **processor},
            "preprocessor_config",
            size=(side, {"shortest_edge": side}),
            crop_size=(side, {"height": side, "width": side}),
            do_center_crop=(True,),
            do_pad=(None, False),
        )

    def load(self, weights: dict[str, mx.array]) -> None:
        tower, projector = (checkpoint.first_prefix(weights, p) for p in (TOWER, PROJECTOR))
        checkpoint.refuse_others(weights, (tower, projector, *self.decoder_prefixes))
        named = checkpoint.with_prefix(weights, tower)
        named = checkpoint.channels_last(named, "embeddings.patch_embedding.weight", channels=3)
        checkpoint.load_module(self.tower, named, tower, unused=["embeddings.position_ids"])
        named = checkpoint.with_prefix(weights, projector)
        checkpoint.load_module(self.projector, named, projector)

    @classmethod
    def decoder_config(cls, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        text, assumed = super().decoder_config(config)
        text.setdefault("model_type", "llama")
        check_fields(text, "text_config", model_type=tuple(TURNS))
        text["tie_word_embeddings"] = resolve_config(config)["tie_word_embeddings"]
        return text, assumed

    @classmethod
    def default_chat_template(cls, config: dict[str, Any], folder: Path) -> str:
        text, _ = cls.decoder_config(config)
        return CHAT_TEMPLATE % (TURNS[text["model_type"]],)

    def picture_limits(self) -> list[str]:
        return [f"the middle square, as {self.side} x {self.side} pixels"]

    def row_count(self, picture: Picture) -> int:
        if max(picture.size) > 100 * min(picture.size):
            raise ImageError("the picture is over 100 times as long as wide; crop it first")
        return self.patches**2 + 1 - self.skipped

    def squares(self, image: Image.Image) -> mx.array:
        """Its pixels, [1, side, side, 3]: what is left of the longer edge is cut on both sides."""
        width, height = (self.side * edge // min(image.size) for edge in image.size)
        left, top = (width - self.side) // 2, (height - self.side) // 2
        image = image.resize((width, height), self.pixels.resample)
        image = image.crop((left, top, left + self.side, top + self.side))
        return self.pixels(image, self.side, self.side)[None]

    def encode(self, squares: mx.array) -> mx.array:
        """Rows [n, rows of one, hidden_size] of pixels [n, side, side, 3]."""
        features = self.tower(squares.astype(self.tower.pre_layrnorm.weight.dtype), self.states)
        return self.projector(features[:, self.skipped :])

    def encode_image(self, picture: Picture) -> mx.array:
        return self.encode(self.squares(picture.pixels()))[0]
