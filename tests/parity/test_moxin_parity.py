"""Moxin's rows and logits against transformers' DINOv2, SigLIP and Mistral, in float32."""

import mlx.core as mx
import numpy as np
import pytest
from parity import moxin_checkpoint as checkpoint
from parity.moxin_checkpoint import FORMS, IMAGE_SIZE, PATCH, PATCHES, TEXT, Photo, TowerShape
from PIL import Image

from model_kit.config import read_config
from model_kit.decoder import build_decoder
from vision_add_ons.moxin import MoxinAddOn, ViTConfig, load_vit_encoder
from vision_add_ons.weights import read_weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
no_init_weights = pytest.importorskip("transformers.initialization").no_init_weights

TOLERANCE = 2e-5
MEANS = ([0.485, 0.456, 0.406], [0.5, 0.5, 0.5])
STDS = ([0.229, 0.224, 0.225], [0.5, 0.5, 0.5])


def relative_error(ours, reference) -> float:
    ours, reference = np.array(ours, np.float64), np.array(reference, np.float64)
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


# --- the reference ----------------------------------------------------------------------------


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


class Reference:
    def __init__(self, parts: checkpoint.Parts, dino: TowerShape, siglip: TowerShape) -> None:
        self.shapes = (dino, siglip)
        self.towers = (
            dino_reference(dino, parts.dino, IMAGE_SIZE),
            siglip_reference(siglip, parts.siglip, IMAGE_SIZE),
        )
        self.projector = to_torch(parts.projector)
        config = transformers.MistralConfig(**TEXT, sliding_window=None)
        self.decoder = transformers.MistralForCausalLM(config).eval()
        self.decoder.load_state_dict(to_torch(parts.decoder), strict=True)

    def rows(self, image: Image.Image):
        towers = zip(self.towers, self.shapes, reference_pixels(image), strict=True)
        x = torch.cat([features(*tower) for tower in towers], dim=-1)
        for layer in ("fc1", "fc2", "fc3"):
            x = x @ self.projector[f"{layer}.weight"].T + self.projector[f"{layer}.bias"]
            x = torch.nn.functional.gelu(x) if layer != "fc3" else x
        return x[0]

    def logits(self, pieces) -> np.ndarray:
        """Of the last token; `pieces` are lists of token ids and pictures."""
        embed = self.decoder.get_input_embeddings()
        embeddings = [
            embed(torch.tensor(p)) if isinstance(p, list) else self.rows(p.image) for p in pieces
        ]
        return self.decoder(inputs_embeds=torch.cat(embeddings)[None]).logits[0, -1].numpy()


# --- small random checkpoints -----------------------------------------------------------------


def load_ours(folder, config):
    return MoxinAddOn(folder, config), build_decoder(
        folder, read_config(folder), read_weights(folder)
    )


def our_logits(add_on, decoder, tokens, photos, positions):
    prompt = add_on.expand_prompt(tokens, photos, positions)
    ids = mx.array(prompt.tokens)
    embeddings = add_on.compute_embeddings(decoder, ids, prompt.spans).input_embeddings
    return decoder(ids[None], input_embeddings=embeddings[None])[0, -1]


@pytest.mark.parametrize("class_position", [False, True], ids=["pos=patches", "pos=patches+1"])
@pytest.mark.parametrize("form", FORMS)
def test_rows_and_logits(form, class_position, seed, tmp_path):
    dino = TowerShape(
        width=48, depth=5, heads=3, mlp=96, registers=4, dino=True, class_position=class_position
    )
    parts = checkpoint.random_parts(seed, dino)
    config = checkpoint.config(dino)
    folder = checkpoint.write(tmp_path, parts.named(FORMS[form]), config)
    add_on, decoder = load_ours(folder, config)
    wide, tall = Photo(133, 81, seed), Photo(52, 97, seed + 1)
    tokens = [1, *np.random.default_rng(seed).integers(3, TEXT["vocab_size"], 14).tolist()]

    with torch.no_grad():
        reference = Reference(parts, dino, checkpoint.SIGLIP)
        rows = [reference.rows(photo.image) for photo in (wide, tall)]
        one = reference.logits([tokens[:1], wide, tokens[1:]])
        two = reference.logits([tokens[:1], wide, tall, tokens[1:]])
        apart = reference.logits([tokens[:1], wide, tokens[1:8], tall, tokens[8:]])
        none = reference.logits([tokens])

    ours = [add_on.encode_image(photo) for photo in (wide, tall)]
    assert ours[0].shape == (PATCHES, TEXT["hidden_size"])
    assert ours[0].dtype == mx.float32
    errors = {
        "rows": max(relative_error(a, b) for a, b in zip(ours, rows, strict=True)),
        "one": relative_error(our_logits(add_on, decoder, tokens, [wide], [1]), one),
        "two": relative_error(our_logits(add_on, decoder, tokens, [wide, tall], [1, 1]), two),
        "apart": relative_error(our_logits(add_on, decoder, tokens, [wide, tall], [1, 8]), apart),
        "none": relative_error(our_logits(add_on, decoder, tokens, [], []), none),
    }
    print(errors)
    assert max(errors.values()) <= TOLERANCE, errors
    # The comparison means something: another picture, or the same rows elsewhere, is far off.
    assert relative_error(ours[1], rows[0]) > 0.1
    assert relative_error(ours[0][::-1], rows[0]) > 0.1
    assert relative_error(one, none) > 0.1
    assert relative_error(two, apart) > 0.05


# --- the published sizes ----------------------------------------------------------------------


@pytest.mark.parametrize("tower", ["dino", "siglip"])
def test_published_tower(tower, seed):
    if tower == "dino":
        shape = TowerShape(width=1024, depth=24, heads=16, mlp=4096, registers=4, dino=True)
        config, build = ViTConfig.dinov2_large(), dino_reference
    else:
        shape = TowerShape(width=1152, depth=27, heads=16, mlp=4304)
        config, build = ViTConfig.siglip_so400m(), siglip_reference
    tensors = checkpoint.tower(shape, checkpoint.Random(seed), patches=256)
    pixels = np.random.default_rng(seed).standard_normal((224, 224, 3), dtype=np.float32)
    with torch.no_grad():
        reference = features(build(shape, tensors, 224), shape, pixels).numpy()

    weights = {f"tower.{name}": mx.array(tensor) for name, tensor in tensors.items()}
    assert config.fitted(weights, "tower.", 224, None) == config
    ours = load_vit_encoder(weights, "tower.", config)(mx.array(pixels)[None])
    assert ours.shape == (1, 256, shape.width)
    error = relative_error(ours, reference)
    print(f"{tower}: {error:.1e}")
    assert error <= TOLERANCE
