"""Tiny models that say what they were told to: each token has its successor.

Real checkpoints, whose layers add nothing, so that the last token decides; their KV caches are
filled as any others.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from support import hybrids, tiny
from support.prompting import byte_level

QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "\n", "\n\n")
THOUGHT = ("<think>", "</think>")
END = "<|im_end|>"

THINKS = {
    "<think>": "\n",
    "\n": "Hm",
    "Hm": " so",
    " so": "</think>",
    "</think>": "\n\n",
    "\n\n": "Yes",
    "Yes": " sir",
    " sir": END,
}
"""A thought of two words, which begins on a line of its own, and an answer of two."""

LAYERS = ("o_proj.weight", "out_proj.weight", "down_proj.weight", "w2.weight")
"""What the layers of the families end with."""


def save(
    folder: Path,
    template: str,
    script: Mapping[str, str] | None,
    *,
    added: tuple[str, ...] = (*QWEN, *THOUGHT),
    family: str = "llama",
    end: str = END,
    **changes: Any,
) -> Path:
    """A checkpoint whose answers go on as `script` has it, and end where it says nothing.

    Its tokens are bytes, what is `added`, and the words of the script. Without one, its weights are
    random.
    """
    made = byte_level()
    told = script or {}
    words = [*added, *told, *told.values(), end]
    known = made.get_vocab()
    made.add_tokens(
        [AddedToken(w, normalized=False) for w in dict.fromkeys(words) if w not in known]
    )
    size = made.get_vocab_size()
    width = -(-size // 32) * 32
    sizes = {"vocab_size": size, "hidden_size": width, "max_position_embeddings": 2048, **changes}
    if family == "llama":
        sizes |= {"num_hidden_layers": 1, "tie_word_embeddings": False}
        model: Any = tiny.text_model(3, "llama", **sizes)
    else:
        model = hybrids.HYBRIDS[family](3, **sizes)
    ids = {w: made.token_to_id(w) for w in {*words, *known}}
    if script is not None:
        _teach(model, {token: ids[script.get(word, end)] for word, token in ids.items()})
    folder.mkdir(parents=True, exist_ok=True)
    model.config.eos_token_id = ids[end]
    model.generation_config.eos_token_id = ids[end]
    model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=end, pad_token=added[0])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def _teach(model: Any, successors: Mapping[int, int]) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(LAYERS):
                weight.zero_()
        embeddings, head = model.model.embed_tokens.weight, model.lm_head.weight
        embeddings.copy_(torch.eye(*embeddings.shape))
        head.zero_()
        for token, successor in successors.items():
            head[successor, token] = 1.0
