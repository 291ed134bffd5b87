"""A tiny random Moxin, as transformers' DINOv2, SigLIP and Mistral compute it."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoTokenizer
from transformers.initialization import no_init_weights

from support import moxin_checkpoint as checkpoint
from support.moxin_checkpoint import FORMS, HF, IMAGE_SIZE, PATCH, PATCHES, TEXT, TowerShape
from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint
from vision_add_ons.testing import BOS, WORDS, Reference
from vision_add_ons.testing.drawn_conversations import images_of, texts_of
from vision_add_ons.testing.quantization import GROUP, Kept, QuantizedReference, round_array

MEANS = ([0.485, 0.456, 0.406], [0.5, 0.5, 0.5])
STDS = ([0.229, 0.224, 0.225], [0.5, 0.5, 0.5])


def to_torch(tensors):
    return {name: torch.from_numpy(np.ascontiguousarray(t)) for name, t in tensors.items()}


def split_qkv(tensors, block):
    """timm's one qkv projection as three, by their last names."""
    for end in ("weight", "bias"):
        for name, part in zip("qkv", np.split(tensors[f"{block}.attn.qkv.{end}"], 3), strict=True):
            yield f"{name}_proj.{end}", part


def dino_reference(shape: TowerShape, tensors, image_size: int):
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        mlp_ratio=shape.mlp // shape.width,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        image_size=image_size,
        patch_size=PATCH,
        num_register_tokens=shape.registers,
    )
    with no_init_weights():
        model = transformers.Dinov2WithRegistersModel(config).eval()
    positions = tensors["pos_embed"]
    if not shape.class_position:
        positions = np.concatenate([np.zeros((1, 1, shape.width), np.float32), positions], axis=1)
    state = {
        "embeddings.cls_token": tensors["cls_token"],
        "embeddings.mask_token": np.zeros((1, shape.width), np.float32),
        "embeddings.register_tokens": tensors["reg_token"],
        "embeddings.position_embeddings": positions,
        "embeddings.patch_embeddings.projection.weight": tensors["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": tensors["patch_embed.proj.bias"],
        "layernorm.weight": tensors["norm.weight"],
        "layernorm.bias": tensors["norm.bias"],
    }
    keys = set(model.state_dict())
    for index in range(shape.depth):
        block, layer = f"blocks.{index}", f"encoder.layer.{index}"
        if f"{layer}.norm1.weight" not in keys:
            layer = f"layers.{index}"
        for end in ("weight", "bias"):
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"{layer}.{name}.{end}"] = tensors[f"{block}.{name}.{end}"]
            state[f"{layer}.attention.o_proj.{end}"] = tensors[f"{block}.attn.proj.{end}"]
        state |= {f"{layer}.attention.{n}": part for n, part in split_qkv(tensors, block)}
        for one in "12":
            state[f"{layer}.layer_scale{one}.lambda1"] = tensors[f"{block}.ls{one}.gamma"]
    model.load_state_dict(to_torch(state), strict=True)
    return model


def siglip_reference(shape: TowerShape, tensors, image_size: int):
    config = transformers.SiglipVisionConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        intermediate_size=shape.mlp,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        image_size=image_size,
        patch_size=PATCH,
        vision_use_head=False,
    )
    with no_init_weights():
        model = transformers.SiglipVisionModel(config).eval()
    state = {
        "embeddings.patch_embedding.weight": tensors["patch_embed.proj.weight"],
        "embeddings.patch_embedding.bias": tensors["patch_embed.proj.bias"],
        "embeddings.position_embedding.weight": tensors["pos_embed"][0],
        "post_layernorm.weight": tensors["norm.weight"],
        "post_layernorm.bias": tensors["norm.bias"],
    }
    names = {"norm1": "layer_norm1", "norm2": "layer_norm2"}
    names |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2", "attn.proj": "self_attn.out_proj"}
    for index in range(shape.depth):
        block, layer = f"blocks.{index}", f"encoder.layers.{index}"
        for end in ("weight", "bias"):
            for ours, theirs in names.items():
                state[f"{layer}.{theirs}.{end}"] = tensors[f"{block}.{ours}.{end}"]
        state |= {f"{layer}.self_attn.{n}": part for n, part in split_qkv(tensors, block)}
    prefix = "vision_model." if "vision_model.post_layernorm.weight" in model.state_dict() else ""
    state = {prefix + name: tensor for name, tensor in state.items()}
    model.load_state_dict(to_torch(state), strict=True)
    return model


def features(model, shape: TowerShape, pixels: np.ndarray):
    """Patch features of the last block but one, from pixels [H, W, 3]."""
    states = model(
        torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None],
        output_hidden_states=True,
    ).hidden_states
    assert len(states) == shape.depth + 1
    return states[shape.depth - 1][:, (1 + shape.registers) * shape.dino :]


def reference_pixels(image: Image.Image) -> list[np.ndarray]:
    small = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.BICUBIC)
    pixels = np.asarray(small).astype(np.float32) / np.float32(255)
    return [
        (pixels - np.array(mean, np.float32)) / np.array(std, np.float32)
        for mean, std in zip(MEANS, STDS, strict=True)
    ]


class MoxinReference(Reference):
    name = "moxin"
    dialects = tuple(FORMS)
    sizes = ((133, 81), (52, 97))
    refused = (
        ("arch_specifier", "no-align+gelu-mlp", UnsupportedCheckpoint),
        ("use_fused_vision_backbone", False, UnsupportedCheckpoint),
        (
            "timm_model_ids",
            ["vit_large_patch14_clip_336.openai", "vit_so400m_patch14_siglip_384"],
            UnsupportedCheckpoint,
        ),
        ("timm_override_act_layers", [None, "quick_gelu"], UnsupportedCheckpoint),
        ("image_resize_strategy", "stretch", UnsupportedCheckpoint),
        ("image_sizes", [224, 384], UnsupportedCheckpoint),
        ("image_sizes", "large", BrokenConfig),
        ("image_sizes", [], BrokenConfig),
        ("dino_num_heads", "3", BrokenConfig),
        ("text_config", [1], BrokenConfig),
    )
    unused = (
        rf"{HF.dino}(blocks\.4\.|norm\.)",
        rf"{HF.siglip}(blocks\.3\.|norm\.|attn_pool\.)",
    )
    templates: ClassVar[dict[str, None]] = {"no template, the original's builder": None}
    means: ClassVar[dict[str, Any]] = {
        "means": [[0.1, 0.2, 0.3], [0.5, 0.5, 0.5]],
        "stds": [[0.229, 0.224, 0.225], [0.1, 0.2, 0.3]],
    }

    def __init__(
        self,
        seed: int,
        class_position: bool = False,
        parts: checkpoint.Parts | None = None,
        window: int | None = None,
    ) -> None:
        """`window` is the decoder's sliding window."""
        shape = vars(checkpoint.DINO) | {"class_position": class_position}
        self.shapes = (TowerShape(**shape), checkpoint.SIGLIP)
        self.parts = parts or checkpoint.random_parts(seed, *self.shapes)
        head = self.parts.decoder["lm_head.weight"]
        head[: WORDS.start] = head[WORDS.stop :] = 0
        self.towers = (
            dino_reference(self.shapes[0], self.parts.dino, IMAGE_SIZE),
            siglip_reference(self.shapes[1], self.parts.siglip, IMAGE_SIZE),
        )
        self.projector = to_torch(self.parts.projector)
        self.window = window
        config = transformers.MistralConfig(**TEXT, sliding_window=window)
        self.decoder = transformers.MistralForCausalLM(config).eval()
        self.decoder.load_state_dict(to_torch(self.parts.decoder), strict=True)

    def write(self, folder: Path, dialect: str) -> None:
        config = checkpoint.config(*self.shapes)
        config["text_config"]["sliding_window"] = self.window
        checkpoint.write(folder, self.parts.named(FORMS[dialect]), config)

    def block(self, image: Image.Image) -> list[int]:
        return [TEXT["pad_token_id"]] * PATCHES

    def rows(self, image: Image.Image) -> np.ndarray:
        with torch.no_grad():
            return self._rows(image).numpy()

    def logits(self, tokens: list[int], images: list[Image.Image], answer: list[int]) -> np.ndarray:
        ids = torch.tensor(tokens + answer)
        with torch.no_grad():
            embeddings = self.decoder.get_input_embeddings()(ids)
            if images:
                places = ids == TEXT["pad_token_id"]
                embeddings[places] = torch.cat([self._rows(image) for image in images])
            return self.decoder(inputs_embeds=embeddings[None]).logits[0].numpy()

    def named(self, tensor: str) -> str:
        """By timm's names, which both forms of them are read as."""
        return tensor.replace("reg_token", "register_tokens").replace("scale_factor", "gamma")

    def quantized(self, seed: int, towers: bool) -> Reference:
        parts, kept = checkpoint.random_parts(seed), Kept()
        head = parts.decoder["lm_head.weight"]
        head[: WORDS.start] = head[WORDS.stop :] = 0
        eyes = (parts.dino, parts.siglip, parts.projector)
        for tensors in (parts.decoder, *(eyes if towers else ())):
            for name, tensor in tensors.items():
                if tensor.ndim == 2 and tensor.shape[1] % GROUP == 0:
                    tensors[name] = round_array(tensor, kept)
        return QuantizedReference(MoxinReference(seed, parts=parts), kept)

    def own_processor(self, folder: Path) -> "PurePrompts":
        return PurePrompts(self, AutoTokenizer.from_pretrained(folder))

    def _rows(self, image: Image.Image) -> Any:
        towers = zip(self.towers, self.shapes, reference_pixels(image), strict=True)
        x = torch.cat([features(*tower) for tower in towers], dim=-1)
        for layer in ("fc1", "fc2", "fc3"):
            x = x @ self.projector[f"{layer}.weight"].T + self.projector[f"{layer}.bias"]
            x = torch.nn.functional.gelu(x) if layer != "fc3" else x
        return x[0]


class PurePrompts:
    """The original's own way to build prompts, turn by turn, which transformers does not have.

    A turn's pictures stand at its very start: behind BOS, or behind what ended the answer before.
    """

    def __init__(self, reference: MoxinReference, tokenizer: Any) -> None:
        self.reference, self.tokenizer = reference, tokenizer

    def apply_chat_template(self, messages: list[dict[str, Any]], **_: Any) -> list[list[int]]:
        tokens = [BOS]
        system, written = "", ""
        for i, message in enumerate(messages):
            text = "".join(texts_of(message)).strip()
            images = images_of([message])
            if message["role"] == "user":
                tokens += self._encode(written)
                tokens += [token for image in images for token in self.reference.block(image)]
                written = f"In: {(system + text).strip()}\nOut:"
                system = ""
            elif images:
                raise ValueError("pictures belong to questions")
            elif message["role"] == "assistant":
                written += f" {text or ' '}</s>"
            elif message["role"] == "system" and not i:
                system = f"{text}\n\n" if text else ""
            else:
                raise ValueError(f"a {message['role']} message has no place here")
        return [tokens + self._encode(written)]

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))
