"""Tiny random PaliGemmas of transformers, 1 and 2, written as each tool writes them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from support.pictures import photographs
from support.sizes import SIGLIP, TEXT
from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint
from vision_add_ons.testing import BOS, Conversation, Reference, random_weights
from vision_add_ons.testing.drawn_conversations import images_of, texts_of

IMAGE = 80
SIDE, ROWS = 64, 16
PATCHES = "vision_tower.vision_model.embeddings.patch_embedding.weight"


class PaliGemmaReference(Reference):
    name = "paligemma"
    dialects = ("transformers 5", "transformers 4", "mlx-vlm")
    image_token = IMAGE
    continues = False
    places_pictures = True
    refused: ClassVar[tuple[tuple[Any, ...], ...]] = (
        ("vision_config.model_type", "clip_vision_model", UnsupportedCheckpoint),
        ("vision_config.hidden_act", "gelu", UnsupportedCheckpoint),
        ("vision_config.num_channels", 1, UnsupportedCheckpoint),
        ("vision_config.patch_size", -16, BrokenConfig),
        ("text_config.model_type", "llama", UnsupportedCheckpoint),
        ("text_config.hidden_act", "silu", UnsupportedCheckpoint),
        ("text_config.tie_word_embeddings", False, UnsupportedCheckpoint),
        ("tie_word_embeddings", False, UnsupportedCheckpoint),
        ("image_token_index", 96, UnsupportedCheckpoint),
        ("text_config", None, UnsupportedCheckpoint),
        ("preprocessor_config.json/do_resize", False, UnsupportedCheckpoint),
        ("preprocessor_config.json/do_normalize", False, UnsupportedCheckpoint),
        ("preprocessor_config.json/size", {"height": 32, "width": 64}, UnsupportedCheckpoint),
        ("preprocessor_config.json/size", {"shortest_edge": 64}, UnsupportedCheckpoint),
        ("preprocessor_config.json/image_seq_length", 256, UnsupportedCheckpoint),
    )
    processors = (
        {},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 2.0, 3.0], "resample": 0},
    )
    pixel_sizes = (*Reference.pixel_sizes, (SIDE, SIDE))
    special_tokens: ClassVar[dict[str, tuple[int, str]]] = {
        "image_token": (IMAGE, "<image>"),
        "bos_token": (BOS, "<bos>"),
    }
    adds_bos = (False, True)
    templates: ClassVar[dict[str, None]] = {"no template, the processor's text": None}
    texts = (
        ("<image>caption en", 1),
        ("<image><bos>caption en", 1),
        ("<image><image>\ncaption both", 2),
        ("look at <image> and at <image> now", 2),
        ("<bos>caption en\n", 2),
    )
    text: ClassVar[dict[str, Any]] = {"model_type": "gemma"}

    def __init__(self, seed: int) -> None:
        text = {
            **TEXT,
            "rope_parameters": {"rope_type": "default", "rope_theta": 3e3},
            **self.text,
        }
        config = PaliGemmaConfig(
            text_config=text,
            vision_config={**SIGLIP, "image_size": SIDE, "patch_size": 16},
            image_token_index=IMAGE,
            hidden_size=64,
            projection_dim=64,
            attn_implementation="eager",
        )
        self.model = random_weights(PaliGemmaForConditionalGeneration(config), seed)
        for name, parameter in self.model.model.language_model.named_parameters():
            if "norm" in name:
                # Gemma's norms multiply by 1 + weight. Somewhat less than other families', or
                # on one seed in thousands float32 itself is off by more than the tolerance.
                parameter.data -= 1.25
        size = {"height": SIDE, "width": SIDE}
        self.processor = SiglipImageProcessorPil(size=size, image_seq_length=ROWS)

    def write(self, folder: Path, dialect: str) -> None:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        if dialect == "transformers 5":
            return
        config = json.loads((folder / "config.json").read_text())
        text, vision = config["text_config"], config["vision_config"]
        text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
        for name in ("layer_types", "use_bidirectional_attention", "tie_word_embeddings"):
            text.pop(name, None)
        # As published: no more than tells it from the defaults.
        for name in ("hidden_act", "layer_norm_eps", "num_channels", "attention_dropout"):
            del vision[name]
        (folder / "config.json").write_text(json.dumps(config))
        tensors = {
            name.replace("vision_tower.", "vision_tower.vision_model."): tensor
            for name, tensor in load_file(folder / "model.safetensors").items()
        }
        if dialect == "mlx-vlm":
            tensors[PATCHES] = tensors[PATCHES].permute(0, 2, 3, 1).contiguous()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    def block(self, image: Image.Image) -> list[int]:
        return [IMAGE] * ROWS

    def rows(self, image: Image.Image) -> np.ndarray:
        with torch.no_grad():
            features = self.model.get_image_features(self._pixels([image]))
        return features.pooler_output[0].numpy()

    def logits(self, tokens: list[int], images: list[Image.Image], answer: list[int]) -> np.ndarray:
        extra: dict[str, Any] = {}
        if images:
            # As its `generate` has it: the prompt is type 0, what is generated is type 1.
            types = [0] * len(tokens) + [1] * len(answer)
            extra = {"pixel_values": self._pixels(images), "token_type_ids": torch.tensor([types])}
        with torch.no_grad():
            return self.model(input_ids=torch.tensor([tokens + answer]), **extra).logits[0].numpy()

    def pictures(self) -> list[Image.Image]:
        return photographs()

    def pixels(self, image: Image.Image, settings: Mapping[str, Any]) -> np.ndarray:
        theirs = SiglipImageProcessorPil(**settings)
        return theirs([image], return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)

    def our_pixels(self, add_on: Any, image: Image.Image) -> np.ndarray:
        return np.array(add_on.pixels(image, SIDE, SIDE))

    def conversations(self) -> list[Conversation]:
        """One turn with pictures; turns, which the family has none of, joined; and no picture."""
        question = "answer en  what\n\nis this? "
        pictures = [Image.new("RGB", size) for size in ((30, 20), (9, 9), (32, 20))]
        turns = [
            {"role": "user", "content": "caption en", "images": pictures[:1]},
            {"role": "assistant", "content": "a square"},
            {"role": "user", "content": "and this", "images": pictures[1:2]},
        ]
        single = [
            Conversation(
                [{"role": "user", "content": question, "images": pictures[:count]}], f"{question}\n"
            )
            for count in (1, 2, 3)
        ]
        return [
            *single,
            Conversation(turns, "caption en\na square\nand this\n"),
            Conversation([{"role": "user", "content": "no picture here"}], "no picture here\n"),
        ]

    def processed(self, tokenizer: Any, text: str, images: list[Image.Image]) -> list[int]:
        if not images:
            return list(tokenizer.encode(f"<bos>{text}", add_special_tokens=False))
        whole = PaliGemmaProcessor(SiglipImageProcessorPil(image_seq_length=ROWS), tokenizer)
        # It puts BOS where it belongs, and ends each prompt with a line break.
        own = text.replace("<bos>", "").removesuffix("\n")
        ids = whole(images=[images], text=[own], truncation=False)["input_ids"][0]
        return [int(token) for token in (ids if text.endswith("\n") else ids[:-1])]

    def own_processor(self, folder: Path) -> "Joining":
        return Joining(AutoTokenizer.from_pretrained(folder))

    def _pixels(self, images: list[Image.Image]) -> torch.Tensor:
        return self.processor(images, return_tensors="pt")["pixel_values"]


class Joining:
    """The family's processor, which knows no turns: it is given all pictures, and each message's
    text on a line of its own. It refuses texts without pictures, which are plain Gemma's."""

    def __init__(self, tokenizer: Any) -> None:
        images = SiglipImageProcessorPil(image_seq_length=ROWS)
        self.whole = PaliGemmaProcessor(images, tokenizer)

    def apply_chat_template(self, messages: list[dict[str, Any]], **_: Any) -> Any:
        text = "\n".join("".join(texts_of(message)) for message in messages)
        if images := images_of(messages):
            marked = "<image>" * len(images) + text
            return self.whole(images=[images], text=[marked], truncation=False)["input_ids"]
        return [self.whole.tokenizer.encode(f"<bos>{text}\n", add_special_tokens=False)]


class PaliGemma2Reference(PaliGemmaReference):
    """With a window that prompts are longer than."""

    name = "paligemma2"
    refused = (("text_config.hidden_activation", "silu", UnsupportedCheckpoint),)
    text: ClassVar = {
        "model_type": "gemma2",
        "sliding_window": 24,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 5.0,
    }
