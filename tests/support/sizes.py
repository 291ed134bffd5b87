"""Sizes that the tiny checkpoints of several families share."""

from typing import Any

from vision_add_ons.testing import BOS, EOS, PAD, VOCAB

DECODER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TEXT: dict[str, Any] = {
    **DECODER,
    "vocab_size": VOCAB,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
"""A decoder's that says all of it."""

SIGLIP: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "vision_use_head": False,
}
"""A tower's, but for its patches."""
