import re
import subprocess
import sys

from model_kit.models import KNOWN_MODELS, known_model


def test_names_and_ids() -> None:
    ids = [known.checkpoint for known in KNOWN_MODELS.values() if known.checkpoint]
    assert len(set(ids)) == len(ids) == len(KNOWN_MODELS) - 2
    for name, known in KNOWN_MODELS.items():
        assert known.name == name
        assert re.fullmatch(r"[a-z0-9][a-z0-9.-]+", name)  # no path, and no name of the hub
        assert known.checkpoint is None or re.fullmatch(r"[\w-]+/[\w.-]+", known.checkpoint)
        assert known.about
        assert known.prompt or name == "smollm2"


def test_prompts_of_the_swift_package() -> None:
    for checkpoint in (
        "mlx-community/paligemma-3b-mix-448-8bit",
        "mlx-community/Qwen2-VL-2B-Instruct-4bit",
    ):
        known = known_model(checkpoint)
        assert known is not None
        assert known.prompt == "Describe the image in English"


def test_looked_up_by_name_or_id() -> None:
    known = KNOWN_MODELS["qwen2-vl-2b"]
    assert known_model("qwen2-vl-2b") is known
    assert known_model("qwen2-vl-2b@main") is known
    assert known_model("mlx-community/Qwen2-VL-2B-Instruct-4bit") is known
    for name in ("", "qwen2-vl", "None", "mlx-community/Qwen2-VL", "./qwen2-vl-2b"):
        assert known_model(name) is None


def test_names_cost_no_heavy_imports() -> None:
    script = """if True:
        import sys
        import engine, model_kit.hub, model_kit.models
        heavy = {"mlx", "transformers", "huggingface_hub", "numpy", "tqdm"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
