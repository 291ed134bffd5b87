"""The models that have a short name: what each is, and where it comes from."""

from dataclasses import dataclass

DESCRIBE = "Describe the image in English"


@dataclass(frozen=True)
class KnownModel:
    """One line of the registry."""

    name: str
    checkpoint: str | None
    """Its id on the Hugging Face hub; None for those that `model_kit.demo` sets up."""
    about: str
    """What it is, in a few words."""
    prompt: str | None = DESCRIBE
    """What to ask about a picture, where the user asks nothing; None if it cannot see."""
    greeting: str | None = None
    """One sentence for whoever begins to talk with it."""


_ALL = (
    KnownModel(
        "demo",
        None,
        "SmolLM2 135M with small eyes",
        "describe the picture.",
        "A small demo model: it chats a little, and in drawn pictures (/image FILE) it names "
        "emoji, coloured shapes, printed words and digits, counts and places them; photographs "
        "are beyond it.",
    ),
    KnownModel("gemma3-4b", "mlx-community/gemma-3-4b-it-qat-4bit", "Gemma 3 4B, 4 bit"),
    KnownModel("gemma3-12b", "mlx-community/gemma-3-12b-it-qat-4bit", "Gemma 3 12B, 4 bit"),
    KnownModel("gemma3-27b", "mlx-community/gemma-3-27b-it-qat-4bit", "Gemma 3 27B, 4 bit"),
    KnownModel("gemma3n-e2b", "mlx-community/gemma-3n-E2B-it-4bit", "Gemma 3n E2B, 4 bit"),
    KnownModel("gemma3n-e4b", "mlx-community/gemma-3n-E4B-it-4bit", "Gemma 3n E4B, 4 bit"),
    KnownModel("gemma4-e2b", "mlx-community/gemma-4-e2b-it-4bit", "Gemma 4 E2B, 4 bit"),
    KnownModel("gemma4-e4b", "mlx-community/gemma-4-e4b-it-4bit", "Gemma 4 E4B, 4 bit"),
    KnownModel("gemma4-12b", "mlx-community/gemma-4-12B-it-4bit", "Gemma 4 12B, 4 bit"),
    KnownModel(
        "gemma4-26b",
        "mlx-community/gemma-4-26b-a4b-it-4bit",
        "Gemma 4 26B with experts, 4B of it at once, 4 bit",
    ),
    KnownModel("gemma4-31b", "mlx-community/gemma-4-31b-it-4bit", "Gemma 4 31B, 4 bit"),
    KnownModel("internvl3-2b", "OpenGVLab/InternVL3-2B-hf", "InternVL 3 2B, bfloat16"),
    KnownModel("internvl3-8b", "OpenGVLab/InternVL3-8B-hf", "InternVL 3 8B, bfloat16"),
    KnownModel("internvl3.5-2b", "OpenGVLab/InternVL3_5-2B-HF", "InternVL 3.5 2B, bfloat16"),
    KnownModel("internvl3.5-8b", "OpenGVLab/InternVL3_5-8B-HF", "InternVL 3.5 8B, bfloat16"),
    KnownModel(
        "granite-docling",
        "ibm-granite/granite-docling-258M-mlx",
        "Granite Docling 258M for documents, bfloat16",
        "Convert this page to docling.",
    ),
    KnownModel(
        "idefics3-8b", "HuggingFaceM4/Idefics3-8B-Llama3", "Idefics3 8B with Llama 3, bfloat16"
    ),
    KnownModel("lfm2-vl-450m", "mlx-community/LFM2-VL-450M-4bit", "LFM2-VL 450M, 4 bit"),
    KnownModel("lfm2-vl-1.6b", "mlx-community/LFM2-VL-1.6B-4bit", "LFM2-VL 1.6B, 4 bit"),
    KnownModel("lfm2.5-vl-1.6b", "mlx-community/LFM2.5-VL-1.6B-4bit", "LFM2.5-VL 1.6B, 4 bit"),
    KnownModel(
        "glm-4.1v-9b", "mlx-community/GLM-4.1V-9B-Thinking-4bit", "GLM-4.1V 9B Thinking, 4 bit"
    ),
    KnownModel("glm-4.5v", "mlx-community/GLM-4.5V-4bit", "GLM-4.5V 106B with experts, 4 bit"),
    KnownModel("glm-4.6v-flash", "mlx-community/GLM-4.6V-Flash-4bit", "GLM-4.6V Flash 9B, 4 bit"),
    KnownModel("minicpm-v-4.6", "openbmb/MiniCPM-V-4.6", "MiniCPM-V 4.6 1.3B, bfloat16"),
    KnownModel("minicpm-v-4.7", "openbmb/MiniCPM-V-4.7-1B", "MiniCPM-V 4.7 1B, bfloat16"),
    KnownModel(
        "ministral3-3b", "mlx-community/Ministral-3-3B-Instruct-2512-4bit", "Ministral 3 3B, 4 bit"
    ),
    KnownModel(
        "ministral3-8b", "mlx-community/Ministral-3-8B-Instruct-2512-4bit", "Ministral 3 8B, 4 bit"
    ),
    KnownModel(
        "mistral-small-3.2",
        "nativ-community/Mistral-Small-3.2-24B-Instruct-2506-4bit",
        "Mistral Small 3.2 24B, 4 bit",
    ),
    KnownModel("paligemma-3b", "mlx-community/paligemma-3b-mix-448-8bit", "PaliGemma 3B, 8 bit"),
    # Trained on this one prompt, while a "mix" knows several.
    KnownModel(
        "paligemma2-3b",
        "mlx-community/paligemma2-3b-ft-docci-448-bf16",
        "PaliGemma 2 3B for captions, bfloat16",
        "caption en",
    ),
    KnownModel("pixtral-12b", "mlx-community/pixtral-12b-4bit", "Pixtral 12B, 4 bit"),
    KnownModel("smollm2", None, "SmolLM2 135M, text only", None),
    KnownModel("smolvlm-256m", "HuggingFaceTB/SmolVLM-256M-Instruct", "SmolVLM 256M, bfloat16"),
    KnownModel("smolvlm-500m", "HuggingFaceTB/SmolVLM-500M-Instruct", "SmolVLM 500M, bfloat16"),
    KnownModel("smolvlm2-2b", "HuggingFaceTB/SmolVLM2-2.2B-Instruct", "SmolVLM2 2.2B"),
    KnownModel("qwen2-vl-2b", "mlx-community/Qwen2-VL-2B-Instruct-4bit", "Qwen2-VL 2B, 4 bit"),
    KnownModel("qwen2-vl-7b", "mlx-community/Qwen2-VL-7B-Instruct-4bit", "Qwen2-VL 7B, 4 bit"),
    KnownModel(
        "qwen2.5-vl-3b", "mlx-community/Qwen2.5-VL-3B-Instruct-4bit", "Qwen2.5-VL 3B, 4 bit"
    ),
    KnownModel(
        "qwen2.5-vl-7b", "mlx-community/Qwen2.5-VL-7B-Instruct-4bit", "Qwen2.5-VL 7B, 4 bit"
    ),
    KnownModel("qwen3.5-0.8b", "mlx-community/Qwen3.5-0.8B-MLX-4bit", "Qwen3.5 0.8B, 4 bit"),
    KnownModel("qwen3.5-2b", "mlx-community/Qwen3.5-2B-MLX-4bit", "Qwen3.5 2B, 4 bit"),
    KnownModel("qwen3.5-4b", "mlx-community/Qwen3.5-4B-MLX-4bit", "Qwen3.5 4B, 4 bit"),
    KnownModel("qwen3.5-9b", "mlx-community/Qwen3.5-9B-MLX-4bit", "Qwen3.5 9B, 4 bit"),
    KnownModel("qwen3.6-27b", "mlx-community/Qwen3.6-27B-4bit", "Qwen3.6 27B, 4 bit"),
    KnownModel(
        "qwen3.6-35b",
        "mlx-community/Qwen3.6-35B-A3B-4bit",
        "Qwen3.6 35B with experts, 3B of it at once, 4 bit",
    ),
    KnownModel("qwen3-vl-2b", "mlx-community/Qwen3-VL-2B-Instruct-4bit", "Qwen3-VL 2B, 4 bit"),
    KnownModel("qwen3-vl-4b", "mlx-community/Qwen3-VL-4B-Instruct-4bit", "Qwen3-VL 4B, 4 bit"),
    KnownModel("qwen3-vl-8b", "mlx-community/Qwen3-VL-8B-Instruct-4bit", "Qwen3-VL 8B, 4 bit"),
    KnownModel(
        "qwen3-vl-30b",
        "mlx-community/Qwen3-VL-30B-A3B-Instruct-4bit",
        "Qwen3-VL 30B with experts, 3B of it at once, 4 bit",
    ),
    KnownModel("qwen3-vl-32b", "mlx-community/Qwen3-VL-32B-Instruct-4bit", "Qwen3-VL 32B, 4 bit"),
)

KNOWN_MODELS = {model.name: model for model in _ALL}


def known_model(model: str) -> KnownModel | None:
    """The registry's entry for a short name or a checkpoint id, with or without `@revision`."""
    name = model.partition("@")[0]
    by_id = {known.checkpoint: known for known in _ALL}
    return KNOWN_MODELS.get(name) or by_id.get(name)
