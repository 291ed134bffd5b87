"""Tiny random checkpoints, as transformers saves them."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from support.sizes import DECODER
from vision_add_ons.testing import VOCAB, write_tokenizer

SIZES: dict[str, Any] = {
    **DECODER,
    "head_dim": 16,
    "vocab_size": 49152,  # the demo model's, whose tokenizer they borrow
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def randomize(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights large enough that attention and positions decide the outcome."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))
            else:
                scale = 1.5 / parameter.shape[-1] ** 0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def text_model(seed: int, family: str = "mistral", **changes: Any) -> torch.nn.Module:
    """A random Mistral or Llama of transformers."""
    config_class, model_class = {
        "mistral": (MistralConfig, MistralForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[family]
    config = config_class(**{**SIZES, **changes}, attn_implementation="eager")
    return randomize(model_class(config), seed)


def save(model: Any, folder: Path, tokenizer_of: Path | None = None, **options: Any) -> Path:
    """Save as transformers does, with another checkpoint's tokenizer."""
    model.save_pretrained(folder, **options)
    for name in TOKENIZER_FILES if tokenizer_of else ():
        shutil.copy(tokenizer_of / name, folder / name)  # type: ignore[operator]
    return folder


def of_few_words(seed: int, family: str = "mistral", **changes: Any) -> torch.nn.Module:
    """A random model whose vocabulary is the conformance kit's: it loads 20 times as fast."""
    return text_model(seed, family, vocab_size=VOCAB, **changes)


def save_of_few_words(model: Any, folder: Path, **options: Any) -> Path:
    """Save as transformers does, with the conformance kit's tokenizer."""
    save(model, folder, **options)
    write_tokenizer(folder)
    return folder


LETTERS = ("<pad>", "<s>", "</s>", "<unk>", "\n", *map(chr, range(32, 127)))


def save_of_letters(seed: int, folder: Path, **changes: Any) -> Path:
    """A random model that reads and writes ASCII letter by letter: each text has tokens of its own.

    It loads 20 times as fast as one with a vocabulary of words.
    """
    sizes = {"vocab_size": len(LETTERS), "max_position_embeddings": 2048, **changes}
    save(text_model(seed, **sizes), folder)
    words = models.WordLevel({letter: i for i, letter in enumerate(LETTERS)}, unk_token="<unk>")
    letters = Tokenizer(words)
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    letters.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, **names)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer.save_pretrained(folder)
    return folder


def write_only_words(folder: Path) -> None:
    """Have a model of letters answer in small letters alone: without an end, and no Markdown."""
    small = [i for i, letter in enumerate(LETTERS) if len(letter) == 1 and letter.islower()]

    def silence(tensors: dict[str, torch.Tensor]) -> None:
        head = tensors["lm_head.weight"]
        tensors["lm_head.weight"] = torch.zeros_like(head).index_copy(
            0, torch.tensor(small), head[small]
        )

    edit_weights(folder, silence)


def edit_config(folder: Path, remove: tuple[str, ...] = (), **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    for name in remove:
        config.pop(name, None)
    write_config(folder, {**config, **changes})


def write_config(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder: Path, change: Any) -> None:
    """Apply `change` to the dictionary of tensors of a single-file checkpoint."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def last_logits(model: Any, tokens: list[int]) -> Any:
    """The reference's logits after the last of `tokens`, as numpy."""
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0, -1].float().numpy()
