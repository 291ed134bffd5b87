"""Follow-ups in a conversation with a picture, ours against mlx-vlm's automatic prefix cache (APC).

Both sides load one folder of random weights, are given the same text and PIL picture each turn,
and make the same token ids of them, which is asserted. APC is switched on as mlx-vlm documents it,
less the disk: one `APCManager`, passed to every `stream_generate`.

What cannot be made equal: mlx-vlm's `stream_generate` turns the picture into pixel values anew at
each turn, ours reads its pixels to know it again. APC keeps a Gemma 3 conversation to the last
token but one of the prompt, and whole blocks of 16 tokens of a Pixtral one, so it runs the
previous answer or the end of it again. It copies what it keeps before the first token (Gemma 3,
in these seconds) or after the answer (Pixtral, not in them). mlx-vlm does not let a picture's rows
see each other in Gemma 3, so its answers may be others; ours go into the history of both.
"""

import argparse
import copy
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from model_kit.blas import preload_openblas

preload_openblas()

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402
import vision_families  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402
from PIL import Image  # noqa: E402

from engine import Engine, GenerationOptions, TextDelta, load  # noqa: E402
from vision_add_ons.mlx_vlm_modules import import_mlx_vlm  # noqa: E402

HISTORY, QUESTION, ANSWER = 2000, 30, 8  # tokens
COLD_ROUNDS = 2
"""Rounds that are also run from nothing."""
VOCAB, EOS, MARK, ROWS = 96, 2, 80, 64
WORDS = range(8, MARK)
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rope_theta": 1e6,
    "mm_tokens_per_image": ROWS,
}
GEMMA3_TEXT = {"query_pre_attn_scalar": 64, "sliding_window": 512, "sliding_window_pattern": 6}
VISION = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "image_size": 224}
PATCH = {"gemma3": 14, "pixtral": 16}
PROCESSOR = {"image_seq_length": ROWS, "patch_size": 16, "spatial_merge_size": 1}
# The tokens from `MARK` on; the first stands for a picture in a text.
NAMES: dict[str, tuple[str, ...]] = {
    "gemma3": ("<start_of_image>", "<image_soft_token>", "<end_of_image>"),
    "pixtral": ("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
}
FIELDS: dict[str, tuple[str, ...]] = {
    "gemma3": ("boi_token", "image_token", "eoi_token"),
    "pixtral": ("image_token", "image_break_token", "image_end_token"),
}
# APC leaves its blocks of plain KV caches unused once a picture is among them. Its snapshots it
# does use, but by default it takes none of a conversation below 50,000 tokens.
CASES: dict[str, tuple[str, dict[str, str]]] = {
    "gemma3": ("gemma3", {}),
    "pixtral": ("pixtral", {"APC_LAYER_MAJOR_MEMORY_MIN_TOKENS": "16"}),
    "pixtral, APC as it comes": ("pixtral", {}),
}


class MlxVlm:
    """mlx-vlm with a checkpoint, its processor and an APC of its own."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str]) -> None:
        module = import_mlx_vlm(f"{name}.processing_{name}")
        from mlx_vlm.apc import APCManager
        from mlx_vlm.generate import stream_generate
        from mlx_vlm.tokenizer_utils import load_tokenizer
        from mlx_vlm.utils import StoppingCriteria, load_model, prepare_inputs

        self.stream, self.prepare = stream_generate, prepare_inputs
        self.model = load_model(folder)
        # What `mlx_vlm.load` does, less AutoProcessor, which `import_mlx_vlm` puts back.
        self.processor = getattr(module, f"{name.title()}Processor").from_pretrained(folder)
        tokenizer = self.processor.tokenizer
        self.processor.detokenizer = load_tokenizer(folder, return_tokenizer=False)(tokenizer)
        tokenizer.stopping_criteria = StoppingCriteria([EOS], tokenizer)
        with mock.patch.dict(os.environ, environment):
            self.apc = APCManager()

    def ids(self, text: str, photo: Image.Image) -> list[int]:
        return self.prepare(self.processor, [photo], prompts=text)["input_ids"][0].tolist()

    def ask(self, text: str, photo: Image.Image, apc: bool = True) -> tuple[float, Any, Any]:
        """Seconds to the first token, and the first and the last result."""
        options = {"max_tokens": ANSWER, "apc_manager": self.apc if apc else None}
        started = time.perf_counter()
        results = self.stream(self.model, self.processor, text, [photo], **options)
        first = next(results)
        return time.perf_counter() - started, first, [first, *results][-1]


def _ask(engine: Engine, text: str, photo: Image.Image, top: int = 0) -> tuple[float, Any, Any]:
    """Seconds to the first token, its event, and the generation."""
    started = time.perf_counter()
    options = GenerationOptions(max_tokens=ANSWER, top_logprobs=top)
    generation = engine.generate(text, [photo], options)
    first = next(e for e in generation if isinstance(e, TextDelta))
    seconds = time.perf_counter() - started
    generation.result()
    return seconds, first, generation


def _write(name: str, folder: Path) -> None:
    """A random checkpoint; its answers have neither an end nor special tokens in them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    family = vision_families.FAMILIES[name]
    config = {"model_type": name, **copy.deepcopy(family.config), "eos_token_id": EOS}
    config |= {"hidden_size": TEXT["hidden_size"], "mm_tokens_per_image": ROWS}
    config["image_token_index"] = MARK + FIELDS[name].index("image_token")
    config["text_config"] |= TEXT | (GEMMA3_TEXT if name == "gemma3" else {})
    config["vision_config"] |= VISION | {"patch_size": PATCH[name], "head_dim": 64}
    mx.random.seed(1)
    model = vision_families.mlx_vlm_model(name, copy.deepcopy(config))
    weights = {
        path: mx.random.normal(w.shape) / w[0].size ** 0.5 if w.ndim > 1 else w
        for path, w in tree_flatten(model.parameters())
    }
    head = "language_model.lm_head.weight"
    for matrix in (head, "language_model.model.embed_tokens.weight"):
        weights[matrix] *= mx.array([[float(i in WORDS)] for i in range(VOCAB)])
    if name == "gemma3":
        del weights[head]  # tied
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    settings = family.settings(config["vision_config"])
    settings["image_processor_type"] = f"{name.title()}ImageProcessor"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "processor_config.json").write_text(json.dumps(PROCESSOR))
    names = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, VOCAB))]
    names[MARK : MARK + 3] = NAMES[name]
    words = Tokenizer(models.WordLevel({text: i for i, text in enumerate(names)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_input_names=["input_ids", "attention_mask"],
        extra_special_tokens=dict(zip(FIELDS[name], NAMES[name], strict=True)),
        eos_token="</s>",
    ).save_pretrained(folder)


def apc_follow_ups(rounds: int) -> Iterator[dict[str, Any]]:
    """Of each follow-up, both sides' seconds to the first token and tokens that were run.

    `restored` is what APC's statistics say of it. The first rounds are run from nothing as well;
    `error` and `cold_error` are how far mlx-vlm's first log-probabilities are from those of our
    cold run. All four are NaN in the other rounds.
    """
    for case in CASES:
        yield from _follow_ups(case, rounds)


def _follow_ups(case: str, rounds: int) -> Iterator[dict[str, Any]]:
    name, environment = CASES[case]
    chance = np.random.default_rng(1)
    photo = Image.fromarray(chance.integers(0, 256, (168, 224, 3), dtype=np.uint8))

    def words(count: int) -> str:
        return "".join(f" w{i}" for i in chance.choice(WORDS, count))

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _write(name, folder)
        engine = stack.enter_context(load(folder))
        forgetful = stack.enter_context(load(folder, cache_bytes=0))
        theirs = MlxVlm(name, folder, environment)
        text = f"<s>{words(20)} {NAMES[name][0]}{words(HISTORY)}"
        generation = _ask(engine, text, photo)[2]
        theirs.ask(text, photo)
        for i in range(-1, rounds):  # the first only warms up
            text += f" {generation.result().answer.strip()}{words(QUESTION)}"
            before = theirs.apc.stats.restored_tokens
            for side in (0, 1) if i % 2 else (1, 0):
                if side:
                    their_seconds, their_first, last = theirs.ask(text, photo)
                else:
                    seconds, _, generation = _ask(engine, text, photo)
            if i < 0:
                assert theirs.ids(text, photo) == generation.prompt.tokens
                continue
            end = generation.result()
            found = (
                {"family": case, "ours": seconds, "theirs": their_seconds}
                | {
                    "prompt": end.prompt_tokens,
                    "ours_run": end.prompt_tokens - end.cached_tokens,
                    "theirs_run": last.prompt_tokens - last.cached_tokens,
                    "restored": theirs.apc.stats.restored_tokens - before,
                    "same_answer": list(end.tokens) == list(last.token_ids),
                }
                | dict.fromkeys(("ours_cold", "theirs_cold", "error", "cold_error"), math.nan)
            )
            if i < COLD_ROUNDS:
                found["ours_cold"], our_first, _ = _ask(forgetful, text, photo, VOCAB)
                found["theirs_cold"], cold_first, _ = theirs.ask(text, photo, apc=False)
                found["error"] = _error(their_first, our_first)
                found["cold_error"] = _error(cold_first, our_first)
            yield found


def _error(theirs: Any, ours: Any) -> float:
    """Relative, without the constant that softmax does not see."""
    reference = np.zeros(VOCAB)
    reference[[token for token, _ in ours.top_logprobs]] = [p for _, p in ours.top_logprobs]
    a, b = (x - x.mean() for x in (np.array(theirs.logprobs).reshape(-1), reference))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="follow-ups of each family")
    found = list(apc_follow_ups(parser.parse_args().rounds))
    print(f"{'median (low, high)':26}{'ours, s':>24}{'mlx-vlm, s':>24}{'ours / mlx-vlm':>24}")
    for case in CASES:
        rows = [f for f in found if f["family"] == case]
        for what, end, some in ((case, "", rows), ("  cold", "_cold", rows[:COLD_ROUNDS])):
            pairs = [(f["ours" + end], f["theirs" + end]) for f in some]
            columns = (*zip(*pairs, strict=True), [a / b for a, b in pairs])
            cells = (f"{statistics.median(c):.3f} ({min(c):.3f}, {max(c):.3f})" for c in columns)
            print(f"{what:26}" + "".join(f"{cell:>24}" for cell in cells))
        told = ("prompt", "ours_run", "theirs_run", "restored", "error", "cold_error")
        print("  " + ", ".join(f"{name} {rows[0][name]:.4g}" for name in told), end=", ")
        print(f"same answer in {sum(f['same_answer'] for f in rows)} of {len(rows)}")


if __name__ == "__main__":
    main()
