"""Text without pictures: what the decoder must go on saying as before, and how that is measured.

Training compares the adapted decoder with the plain one on Python's docstrings and on chats that
the plain decoder itself makes up. Perplexity is measured on the topics of Python's help.
"""

import ast
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor

from scripts.demo_model.decoder import Decoder
from scripts.demo_model.tokens import ChatTokens


def docstrings(tokens: ChatTokens, length: int, most: int = 4000) -> np.ndarray:
    """[n, length] token ids, in random order."""
    found = []
    library = Path(sysconfig.get_path("stdlib"))
    for file in sorted([*library.glob("*.py"), *library.glob("[a-hj-z]*/*.py")]):
        if file.parent.name in ("site-packages", "test"):
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
        found += [text for text in map(ast.get_docstring, nodes) if text and len(text) > 80]
    Random(1).shuffle(found)
    return _cut(tokens, found, length)[:most]


def help_topics(tokens: ChatTokens, length: int, most: int = 100) -> np.ndarray:
    from pydoc_data import topics

    return _cut(tokens, [topics.topics[name] for name in sorted(topics.topics)], length)[:most]


def _cut(tokens: ChatTokens, texts: Iterable[str], length: int) -> np.ndarray:
    ids = [token for text in texts for token in [*tokens.tokenizer.encode(text).ids, 0]]
    return np.array(ids[: len(ids) // length * length], np.int32).reshape(-1, length)


@torch.no_grad()
def own_chats(
    decoder: Decoder, tokens: ChatTokens, count: int, length: int, seed: int
) -> np.ndarray:
    """Chats that the plain decoder makes up, both sides of them: [count, length]."""
    from transformers import LlamaConfig, LlamaForCausalLM

    device = decoder.embedding.device
    known = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
    known += ("num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "vocab_size")
    known += ("max_position_embeddings", "tie_word_embeddings")
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**{name: decoder.config[name] for name in known}))
    plain = decoder.plain_weights()
    plain["lm_head.weight"] = decoder.embedding
    model.load_state_dict(plain)
    model.to(torch.bfloat16 if device.type == "cuda" else torch.float32).eval()

    torch.manual_seed(seed)
    start = tokens.system() + tokens.before_user
    prompt = torch.tensor([start] * count, device=device)
    made = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=True,
        top_k=0,
        max_new_tokens=length - len(start),
        suppress_tokens=[0],
        eos_token_id=None,
        pad_token_id=0,
    )
    return made.cpu().numpy().astype(np.int32)


@torch.no_grad()
def perplexity(decoder: Decoder, texts: np.ndarray, adapted: bool) -> float:
    total, count = 0.0, 0
    for start in range(0, len(texts), 8):
        tokens = torch.from_numpy(texts[start : start + 8]).long().to(decoder.embedding.device)
        logits = decoder.logits(decoder(decoder.embed(tokens), adapted)[:, :-1]).float()
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"
        )
        total, count = total + losses.item(), count + tokens[:, 1:].numel()
    return float(np.exp(total / count))


def divergence(adapted: Tensor, plain: Tensor) -> Tensor:
    """Mean KL divergence of the adapted decoder's next-token distribution from the plain one's."""
    plain, adapted = plain.float().log_softmax(-1), adapted.float().log_softmax(-1)
    return (plain.exp() * (plain - adapted)).sum(-1).mean()
