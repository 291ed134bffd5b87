"""Of several chat templates in a folder, the one counts that the model's processor would take."""

import json
from pathlib import Path
from typing import Any

import pytest
from support import moxin_checkpoint as moxin

from model_kit.chat_templates import FILE, LEGACY, PROCESSOR, TOKENIZER, find_template
from model_kit.config import read_config
from vision_add_ons.errors import BrokenTokenizer

ORDER = (PROCESSOR, LEGACY, FILE, TOKENIZER)
"""Of a model that sees, as transformers 5 has it."""
SEES = {"vision_config": {}, "text_config": {"model_type": "llama"}}


def found(folder: Path, names: tuple[str, ...], template: Any = None, **config: Any) -> Any:
    """What is found in a folder with templates in these files, each of which says where it is."""
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    for name in names:
        given = {"chat_template": name if template is None else template}
        text = name if name == FILE else json.dumps(given)
        (folder / name).write_text(text)
    own = FILE if FILE in names else (template or TOKENIZER) if TOKENIZER in names else None
    return find_template(folder, read_config(folder, decoder_only=True), own)


@pytest.mark.parametrize("first", range(4))
def test_the_order_of_a_model_that_sees(tmp_path: Path, first: int) -> None:
    for among in (ORDER[first:], ORDER[first : first + 1]):
        assert found(tmp_path / "m", among, **SEES) == (ORDER[first], ORDER[first])


def test_a_text_model_s_is_its_tokenizer_s(tmp_path: Path) -> None:
    assert found(tmp_path / "m", ORDER) == (FILE, FILE)
    assert found(tmp_path / "m", (PROCESSOR, LEGACY, TOKENIZER)) == (TOKENIZER, TOKENIZER)
    assert found(tmp_path / "m", (PROCESSOR, LEGACY)) == (LEGACY, LEGACY)
    assert found(tmp_path / "m", ()) == (None, "")


def test_named_templates(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    assert found(tmp_path / "m", (PROCESSOR,), named, **SEES) == ("D", PROCESSOR)
    assert found(tmp_path / "m", (LEGACY,), {"rag": "R", "default": "D"}, **SEES)[0] == "D"
    for names in ((PROCESSOR,), (LEGACY,), (TOKENIZER,)):
        with pytest.raises(BrokenTokenizer, match=r"none named default \(tool_use\)"):
            found(tmp_path / "m", names, named[:1], **SEES)


def test_a_family_s_own_comes_last(tmp_path: Path) -> None:
    config = moxin.config()
    template, where = found(tmp_path / "m", (), **config)
    assert "Out:" in template
    assert where == "MoxinAddOn's own"
    assert found(tmp_path / "m", (TOKENIZER,), **config) == (TOKENIZER, TOKENIZER)
