"""Which tokenizer of a folder counts, and what to do where there is none that does."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from support import tiny

from model_kit import inspect_checkpoint, load_model_kit
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
    subprocess.run([sys.executable, *arguments], cwd=folder, check=True, capture_output=True)
    tokenizer = load_model_kit(folder).tokenizer
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    theirs = MistralTokenizer.from_file(str(folder / "tekken.json")).instruct_tokenizer.tokenizer
    text = "Two  spaces, naïve 日本 🦊\n\n\tand 12345 digits."
    assert tokenizer.encode(text, add_special_tokens=False) == theirs.encode(text, False, False)
    assert tokenizer.convert_tokens_to_ids("[IMG]") == 10
