"""The families that serve a conversation of any form, by their references."""

from support.gemma3_reference import Gemma3Reference
from support.gemma3n_reference import Gemma3nReference
from support.gemma4_reference import Gemma4Reference
from support.glm4v_reference import Glm4vReference
from support.idefics3_reference import Idefics3Reference
from support.internvl_reference import InternVLReference
from support.lfm2_vl_reference import Lfm2VLReference
from support.minicpmv_reference import MiniCPMV46Reference, MiniCPMV47Reference
from support.mistral3_reference import Ministral3Reference, Mistral3Reference
from support.paligemma_reference import PaliGemma2Reference, PaliGemmaReference
from support.pixtral_reference import PixtralReference
from support.qwen2_5_vl_reference import Qwen25VLReference
from support.qwen2_vl_reference import Qwen2VLReference
from support.qwen3_5_reference import Qwen35Reference
from support.qwen3_vl_reference import Qwen3VLReference
from support.seeds import SWEEP

FAMILIES = (
    Gemma3Reference,
    Gemma3nReference,
    Gemma4Reference,
    PaliGemmaReference,
    PaliGemma2Reference,
    PixtralReference,
    Mistral3Reference,
    Ministral3Reference,
    Qwen2VLReference,
    Qwen25VLReference,
    Qwen3VLReference,
    Qwen35Reference,
    Idefics3Reference,
    InternVLReference,
    Lfm2VLReference,
    Glm4vReference,
    MiniCPMV46Reference,
    MiniCPMV47Reference,
)

KINDS = (
    Gemma3Reference,  # caches that rotate, and pictures that see each other whole
    Gemma3nReference,  # layers that share caches, and embeddings for each of them
    Gemma4Reference,
    PaliGemmaReference,  # a prompt that sees itself whole
    PixtralReference,  # neither of these
    Qwen2VLReference,  # positions that pictures shift
    Qwen3VLReference,  # and rows for deeper layers
    Qwen35Reference,  # states beside caches
    Lfm2VLReference,
)
"""One for each way in which prompts and caches are kept."""

FAMILIES_IN_TURN = FAMILIES if SWEEP else KINDS
"""All of them in a sweep."""
