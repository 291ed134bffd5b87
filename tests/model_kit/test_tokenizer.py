"""Which tokenizer of a folder counts, and what to do where there is none that does."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, LlamaTokenizer
from transformers.tokenization_utils_tokenizers import TokenizersBackend

pytest.importorskip("torch")

from support import tiny
from support.processes import whole_environment

from model_kit import inspect_checkpoint, load_model_kit
from model_kit.config import CheckpointConfig
from model_kit.tokenizer import load_tokenizer
from vision_add_ons.errors import BrokenTokenizer


def test_tekken_alone_is_named_with_what_makes_a_tokenizer_of_it(tmp_path: Path) -> None:
    mistral_common = pytest.importorskip("mistral_common")
    folder = tiny.save(tiny.text_model(1, vocab_size=3000), tmp_path / "tekken")
    data = Path(mistral_common.__file__).parent / "data"
    tekken = json.loads((data / "tekken_240911.json").read_text())
    tekken["vocab"] = tekken["vocab"][:2000]  # beside the special tokens: the whole takes long
    tekken["config"]["default_vocab_size"] = 3000
    (folder / "tekken.json").write_text(json.dumps(tekken))
    for open_it in (load_model_kit, inspect_checkpoint):
        with pytest.raises(BrokenTokenizer, match=r"as tekken\.json alone") as caught:
            open_it(folder)
    # What it says to do is done, to the letter.
    told = re.search(r"in that folder (python .*)", str(caught.value))
    assert told is not None
    python, *arguments = shlex.split(told[1])
    assert python == "python"
    subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
        env=whole_environment(),
    )
    tokenizer = load_model_kit(folder).tokenizer
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    theirs = MistralTokenizer.from_file(str(folder / "tekken.json")).instruct_tokenizer.tokenizer
    text = "Two  spaces, naïve 日本 🦊\n\n\tand 12345 digits."
    assert tokenizer.encode(text, add_special_tokens=False) == theirs.encode(text, False, False)
    assert tokenizer.convert_tokens_to_ids("[IMG]") == 10


# --- the class, and with it the ids ---------------------------------------------------------------

MODEL_TYPES = (
    "gemma3",
    "gemma3n",
    "idefics3",
    "internvl",
    "lfm2-vl",
    "lfm2_vl",
    "glm4v",
    "glm4v_moe",
    "llava",
    "llava_next",
    "minicpmv4_6",
    "minicpmv4_7",
    "mistral3",
    "moxin",
    "paligemma",
    "pixtral",
    "prismatic",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_vl",
    "qwen3_vl_moe",
    "smolvlm",
)
NAMED = ("LlamaTokenizer", "TokenizersBackend", "GemmaTokenizerFast", None)
"""What tokenizer_config.json calls the class; nothing, in some."""
SPOKEN = (
    "plain words",
    "  two  and   three    spaces ",
    "USER: <image>\nWhat is this? ASSISTANT:",
    "<image> after it,<image>  and two spaces",
    "<s>again</s> and\n\n\nlines",
    "naïve 日本 🦊\t.",
)


def metaspace() -> Tokenizer:
    """As LLaMA's tokenizer.json has it: each space is a letter, and one is put before a text."""
    letters = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁"]
    letters += [chr(i) for i in range(33, 127)]
    merges = [("▁", "▁"), ("▁▁", "▁▁"), ("▁", "a"), ("a", "n"), ("▁a", "n"), ("\u2581", "W")]
    pieces = [*letters, *("".join(pair) for pair in merges)]
    ids = {piece: i for i, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>", "<image>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return made


def byte_level() -> Tokenizer:
    """As in most newer checkpoints, LLaMA 3's and Mistral's with tekken among them."""
    letters = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĠĠ", "ĊĊ"]
    ids = {piece: i for i, piece in enumerate(letters)}
    made = Tokenizer(models.BPE(ids, [("Ġ", "Ġ"), ("Ċ", "Ċ")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<unk>", "<s>", "</s>", "<image>"])
    return made


def write_tokenizer_of(folder: Path, made: Tokenizer, model_type: str, named: str | None) -> Any:
    """A folder with this tokenizer, whose config.json says that it sees; its config as read."""
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings |= {} if named is None else {"tokenizer_class": named}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    raw = {"model_type": model_type, "vision_config": {}, "text_config": {}}
    (folder / "config.json").write_text(json.dumps(raw))
    return CheckpointConfig(raw, model_type, None, "", {}, {}, None, set(), None)


@pytest.mark.parametrize("made", [metaspace, byte_level])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_class_is_the_one_that_transformers_takes(
    made: Callable[[], Tokenizer], model_type: str, tmp_path: Path
) -> None:
    """Classes of transformers are not names alone: LlamaTokenizer splits as LLaMA does, whatever
    tokenizer.json says."""
    for i, named in enumerate(NAMED):
        folder = tmp_path / str(i)
        config = write_tokenizer_of(folder, made(), model_type, named)
        theirs = AutoTokenizer.from_pretrained(folder)
        ours = load_tokenizer(folder, config)
        assert type(ours._tokenizer) is type(theirs), named
        for text in SPOKEN:
            for special in (False, True):
                mine = ours.encode(text, add_special_tokens=special)
                assert mine == theirs.encode(text, add_special_tokens=special), (named, text)


@pytest.mark.parametrize("model_type", ["llava", "llava_next"])
def test_spaces_and_what_follows_an_image(model_type: str, tmp_path: Path) -> None:
    """Published LLaVAs name LlamaTokenizer, which has other ids for both."""
    config = write_tokenizer_of(tmp_path, metaspace(), model_type, "LlamaTokenizer")
    ours = load_tokenizer(tmp_path, config)
    other = LlamaTokenizer.from_pretrained(tmp_path)
    differ = [text for text in SPOKEN if ours.encode(text) != other.encode(text)]
    assert "<image> after it,<image>  and two spaces" in differ


@pytest.mark.parametrize("model_type", ["mistral3", "pixtral"])
def test_tekken_beside_tokenizer_json(model_type: str, tmp_path: Path) -> None:
    """Mistral publishes both. The family's processor reads tokenizer.json, also where
    mistral-common, which would read tekken.json, is installed."""
    pytest.importorskip("mistral_common")
    config = write_tokenizer_of(tmp_path, byte_level(), model_type, "LlamaTokenizerFast")
    (tmp_path / "tekken.json").write_text("{}")
    ours = load_tokenizer(tmp_path, config)
    assert type(ours._tokenizer) is TokenizersBackend
    theirs = TokenizersBackend.from_pretrained(tmp_path)
    assert [ours.encode(text) for text in SPOKEN] == [theirs.encode(text) for text in SPOKEN]
