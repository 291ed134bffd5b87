"""Fidelity of one checkpoint to another, against torch and numpy."""

import gc
import importlib.util
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np
import pytest
import torch
from PIL import Image
from support import tiny
from support.gemma3_reference import Gemma3Reference
from support.paligemma_reference import PaliGemma2Reference
from support.qwen2_vl_reference import Qwen2VLReference
from support.seeds import SWEEP, seed_of
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MistralForCausalLM, PreTrainedTokenizerFast

from engine import (
    CheckpointNotFound,
    ContextExceeded,
    ImageError,
    OptionError,
    PromptError,
    RequestError,
)
from engine.fidelity import (
    ANSWER_TOKENS,
    MAX_TOKENS,
    QUESTION,
    Fidelity,
    ItemFidelity,
    compare,
    default_pictures,
    default_texts,
    plot,
)
from engine.prompts.builder import PromptBuilder
from model_kit import load_model_kit
from vision_add_ons.testing import BOS, EOS, PAD, VOCAB, Photo, Reference

TEXTS = ["The harbour lay still.", "1, 2, 3, and\nthen?", "def f(x):\n    return x + 1\n"]


def perturbed(model: Any, seed: int, amount: float = 0.1) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1 + amount * torch.randn(parameter.shape, generator=generator)
    return model


def divergence(source: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
    """KL(source || target) and agreement of logits [positions, vocabulary], in float64."""
    a, b = (np.asarray(x, np.float64) for x in (source, target))
    log_p, log_q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (a, b))
    return (np.exp(log_p) * (log_p - log_q)).sum(-1), a.argmax(-1) == b.argmax(-1)


def check(item: ItemFidelity, source: Any, target: Any) -> None:
    kl, agrees = divergence(source, target)
    assert item.tokens == len(kl)
    np.testing.assert_allclose(item.kl, kl, rtol=2e-3, atol=5e-6)
    assert item.mean_kl == pytest.approx(kl.mean(), rel=1e-3)
    # Unless two tokens are as good as equally likely to one of them.
    close = [np.diff(np.sort(x, axis=-1)[:, -2:])[:, 0] < 1e-4 for x in (source, target)]
    assert ((np.array(item.agrees) == agrees) | close[0] | close[1]).all()


# --- texts --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A text model with few words, and one with other weights, not far off."""
    seed = seed_of("small models")
    folders = []
    for amount in (0.0, 0.1):
        model = perturbed(tiny.text_model(seed, vocab_size=VOCAB), seed + 1, amount)
        folders.append(tiny.save(model, tmp_path_factory.mktemp("small") / "model"))
        write_words(folders[-1], {})
    return folders[0], folders[1]


def test_a_model_is_like_itself(letters_folder: Path) -> None:
    fidelity = compare(letters_folder, letters_folder)
    assert len(fidelity.items) == len(default_texts()) == 6  # no pictures: it cannot see
    assert fidelity.mean_kl == 0
    assert fidelity.top1 == 1
    assert {kl for item in fidelity.items for kl in item.kl} == {0.0}


def test_bfloat16_is_kept_as_it_is(tmp_path: Path, seed: int) -> None:
    model = tiny.text_model(seed, vocab_size=VOCAB).to(torch.bfloat16)
    write_words(tiny.save(model, tmp_path / "model"), {})
    fidelity = compare(tmp_path / "model", tmp_path / "model", texts=["w40 w50 w60 w70"])
    assert fidelity.mean_kl == 0
    assert fidelity.top1 == 1


def test_every_position_of_a_text_is_what_torch_says(tmp_path: Path, seed: int) -> None:
    folders = [tiny.save_of_letters(seed, tmp_path / name) for name in ("source", "target")]
    models = [MistralForCausalLM.from_pretrained(folders[0]).eval() for _ in folders]
    perturbed(models[1], seed + 1).save_pretrained(folders[1])
    fidelity = compare(*folders, texts=[*TEXTS, f"Number {seed}"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folders[0])
    rows = []
    for item, text in zip(fidelity.items, [*TEXTS, f"Number {seed}"], strict=True):
        tokens = torch.tensor([tokenizer.encode(text)])
        with torch.no_grad():
            source, target = (m(tokens).logits[0].numpy() for m in models)
        check(item, source, target)
        rows.append(divergence(source, target))
    kl, agrees = (np.concatenate(x) for x in zip(*rows, strict=True))
    assert fidelity.tokens == len(kl)
    assert fidelity.mean_kl == pytest.approx(kl.mean(), rel=1e-3)
    assert fidelity.mean_kl > 1e-3
    assert fidelity.top1 == pytest.approx(agrees.mean(), abs=1.1 / len(agrees))


def test_long_texts_are_cut(small: tuple[Path, Path], tmp_path: Path, seed: int) -> None:
    words = np.random.default_rng(seed).integers(20, VOCAB, MAX_TOKENS + 1)
    long = " ".join(f"w{i}" for i in words)
    whole = compare(*small, texts=[long]).items[0]
    assert whole.tokens == MAX_TOKENS
    short = shutil.copytree(small[0], tmp_path / "short")
    tiny.edit_config(short, max_position_embeddings=100)
    cut = compare(short, small[1], texts=[long]).items[0]
    assert cut.tokens == 100
    np.testing.assert_allclose(cut.kl, whole.kl[:100], rtol=1e-3, atol=1e-5)


def test_one_model_at_a_time(tiny_folder: Path) -> None:
    gc.collect()  # what others left, or it would go meanwhile
    mx.clear_cache()
    before = mx.get_active_memory()
    stages: list[str] = []
    loaded = []

    def progress(stage: str, done: int, total: int) -> None:
        stages.extend([stage] * (stages[-1:] != [stage]))
        if stage == "load decoder" and done == total:
            loaded.append(mx.get_active_memory() - before)

    compare(tiny_folder, tiny_folder, TEXTS, progress=progress)
    loads = ["open checkpoint", "load decoder"]
    assert stages == [*loads, "run source", *loads, "run target"]
    assert loaded[0] > 20e6
    assert loaded[1] < 1.2 * loaded[0]
    assert mx.get_active_memory() - before < 0.2 * loaded[0]


# --- pictures -----------------------------------------------------------------------------------


class Family:
    """A reference, its perturbed copy, and a tokenizer in which its special tokens have names."""

    special: ClassVar[dict[str, dict[int, str]]] = {
        "gemma3": {80: "<start_of_image>", 81: "<image_soft_token>", 82: "<end_of_image>"},
        "qwen2_vl": {80: "<|vision_start|>", 81: "<|vision_end|>", 82: "<|image_pad|>"},
        "paligemma 2": {},
    }

    def __init__(self, reference: type[Reference], folder: Path, seed: int) -> None:
        self.models = [reference(seed), reference(seed)]
        perturbed(self.models[1].model, seed + 1, 0.02)
        self.folders = [folder / "source", folder / "target"]
        names = self.special.get(reference.name) or {reference.image_token: "<image>"}
        for model, own in zip(self.models, self.folders, strict=True):
            model.write(own, model.dialects[0])
            write_words(own, names)


def write_words(folder: Path, special: dict[int, str]) -> None:
    words = {f"w{i}": i for i in range(3, VOCAB)} | {"<pad>": PAD, "<bos>": BOS, "</s>": EOS}
    by_id = {i: word for word, i in words.items()} | special
    for i, word in enumerate(
        ["Describe", "the", "picture.", "<start_of_turn>model", "<|im_start|>assistant"]
    ):
        by_id[10 + i] = word
    vocabulary = {word: i for i, word in by_id.items()}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<bos>", "</s>", *special.values()])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)


SEEING = [Gemma3Reference, Qwen2VLReference, PaliGemma2Reference]


@pytest.fixture(scope="module", params=SEEING if SWEEP else SEEING[:2])
def family(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Family:
    seed = seed_of(request.param.name)
    return Family(request.param, tmp_path_factory.mktemp("family"), seed)


def test_pictures_are_compared_along_the_source_s_answer(
    family: Family, tmp_path: Path, seed: int
) -> None:
    """Against transformers, which makes its own greedy answer to the same prompt."""
    files = []
    for i, size in enumerate([(40, 30), (28, 52)]):
        files.append(tmp_path / f"picture-{i}.png")
        Photo(*size, seed=seed + i).image.save(files[-1])
    fidelity = compare(*family.folders, texts=["w40 w41 w42"], pictures=files)
    assert [item.label for item in fidelity.items[1:]] == [file.name for file in files]
    builder = PromptBuilder(load_model_kit(family.folders[0]))
    source, target = family.models
    for item, file in zip(fidelity.items[1:], files, strict=True):
        image = Image.open(file)
        prompt = builder.build([{"role": "user", "content": QUESTION}], [file])
        assert prompt.spans
        answer: list[int] = []
        while len(answer) < ANSWER_TOKENS:
            answer.append(int(source.logits(prompt.tokens, [image], answer)[-1].argmax()))
        last = len(prompt.tokens) - 1
        check(item, *(m.logits(prompt.tokens, [image], answer)[last:] for m in (source, target)))
        assert item.mean_kl > 1e-5
    assert fidelity.items[0].tokens == len(builder.build("w40 w41 w42").tokens)


def test_the_set_that_ships_has_pictures_for_those_who_see(family: Family) -> None:
    names = [path.name for path in default_pictures()]
    assert len(names) == 3
    fidelity = compare(family.folders[0], family.folders[0])
    assert [item.label for item in fidelity.items[-3:]] == names
    assert fidelity.mean_kl == 0
    assert fidelity.top1 == 1
    assert compare(*family.folders, texts=["w40"], pictures=[]).tokens <= 2


def test_an_answer_may_be_empty(tmp_path: Path, seed: int) -> None:
    """Then the prompt's last position is what is left."""
    family = Family(Qwen2VLReference, tmp_path, seed)
    for folder in family.folders:
        tiny.edit_config(folder, eos_token_id=list(range(VOCAB)))
    [item] = compare(*family.folders, texts=[], pictures=default_pictures()[:1]).items
    assert item.tokens == 1


# --- what cannot be compared --------------------------------------------------------------------


def test_bad_inputs(small: tuple[Path, Path], tmp_path: Path) -> None:
    picture = default_pictures()[0]
    with pytest.raises(ImageError, match="text only"):
        compare(*small, pictures=[picture])
    with pytest.raises(RequestError, match="nothing to compare"):
        compare(*small, [], [])
    with pytest.raises(PromptError, match="one text"):
        compare(*small, "a text")
    with pytest.raises(PromptError, match="not int"):
        compare(*small, [7])  # type: ignore[list-item]
    with pytest.raises(PromptError, match="half a character"):
        compare(*small, ["\ud800"])
    with pytest.raises(PromptError, match="empty"):
        compare(*small, [""])
    with pytest.raises(CheckpointNotFound):
        compare(small[0], tmp_path / "missing")


@pytest.mark.parametrize("size", [VOCAB, VOCAB + 8])
def test_other_vocabularies(size: int, small: tuple[Path, Path], tmp_path: Path, seed: int) -> None:
    """Of another size, or of other words."""
    other = tiny.save(tiny.text_model(seed, vocab_size=size), tmp_path / "other")
    write_words(other, {90: "ninety"} if size == VOCAB else {})
    with pytest.raises(RequestError, match="different vocabularies"):
        compare(small[0], other)


def test_a_full_disk(small: tuple[Path, Path]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(RequestError, match="TMPDIR"):
            compare(*small, ["w40 " * MAX_TOKENS])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_bad_pictures(family: Family, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"missing\.png"):
        compare(*family.folders, pictures=[tmp_path / "missing.png"])
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(default_pictures()[0].read_bytes()[:400])
    with pytest.raises(ImageError, match=r"damaged\.png"):
        compare(*family.folders, pictures=[damaged])


def test_a_picture_that_the_context_does_not_hold(tmp_path: Path, seed: int) -> None:
    family = Family(Gemma3Reference, tmp_path, seed)
    for folder in family.folders:
        config = family.models[0].model.config.text_config.to_dict()
        tiny.edit_config(folder, text_config={**config, "max_position_embeddings": 20})
    with pytest.raises(ContextExceeded, match="smaller picture"):
        compare(*family.folders)


# --- what is shown ------------------------------------------------------------------------------


def result() -> Fidelity:
    return Fidelity(
        (
            ItemFidelity("$1 and $2", (0.0, 0.25, 0.5), (True, True, False)),
            ItemFidelity("animals.png", (1.25,), (True,)),
        )
    )


def test_the_table() -> None:
    assert result().mean_kl == 0.5
    assert result().top1 == 0.75
    assert result().tokens == 4
    head, *rows = (line.split() for line in result().lines())
    assert head == ["tokens", "KL", "(nats)", "top-1"]
    assert rows == [
        ["$1", "and", "$2", "3", "0.25000", "66.7%"],
        ["animals.png", "1", "1.25000", "100.0%"],
        ["all", "4", "0.50000", "75.0%"],
    ]
    assert len({len(line) for line in result().lines()}) == 1


def test_labels_are_short_and_obeyed_by_no_terminal(small: tuple[Path, Path]) -> None:
    text = "\x1b[31mred\n" + "and long " * 20
    [item] = compare(*small, [text]).items
    assert item.label == "[31mred and long and long and..."


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_the_plot(tmp_path: Path) -> None:
    plot(result(), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.format == "PNG"
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 3
    for bad in (tmp_path / "plot.unknown", tmp_path / "no" / "folder.png"):
        with pytest.raises(OptionError, match="cannot be written"):
            plot(result(), bad)


def test_a_plot_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(OptionError, match="pip install matplotlib"):
        plot(result(), tmp_path / "plot.png")


def test_importing_it_is_light() -> None:
    code = (
        "import sys, engine.fidelity; heavy = {'mlx.core', 'transformers', 'matplotlib'};"
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_texts_that_ship() -> None:
    texts = default_texts()
    assert len(set(texts)) == 6
    assert all(60 <= len(text.split()) <= 150 for text in texts)
