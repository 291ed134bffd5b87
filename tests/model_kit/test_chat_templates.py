"""Which of a checkpoint's chat templates counts, and BOS once: as transformers has both."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer
from transformers.processing_utils import ProcessorMixin

from engine.prompts.chat_template import ChatTemplate
from engine.prompts.message_encoder import MessageEncoder
from engine.prompts.messages import Message
from engine.prompts.text_encoder import TextEncoder
from model_kit.config import CheckpointConfig
from model_kit.tokenizer import load_tokenizer
from vision_add_ons.errors import BrokenTokenizer

ASKED = [{"role": "user", "content": "said"}]
WORDS = ("<unk>", "<s>", "</s>", "said", "more")


class TextHalf(ProcessorMixin):
    """A processor of transformers without eyes: what it reads of a folder is as any other's."""

    def __init__(self, tokenizer: Any = None, chat_template: Any = None) -> None:
        super().__init__(tokenizer, chat_template=chat_template)


def template(name: str) -> str:
    return "{% for m in messages %}" + name + ": {{ m.content }}{% endfor %}"


def write_field(folder: Path, file: str, value: Any) -> None:
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, "chat_template": value}))


def named(*names: str) -> list[dict[str, str]]:
    return [{"name": name, "template": template(f"listed as {name}")} for name in names]


def write_additional(folder: Path, *names: str) -> None:
    (folder / "additional_chat_templates").mkdir(exist_ok=True)
    for name in names:
        file = folder / "additional_chat_templates" / f"{name}.jinja"
        file.write_text(template(f"additional {name}"))


PLACES: dict[str, Callable[[Path], Any]] = {
    "processor_config.json": lambda f: write_field(
        f, "processor_config.json", template("processor")
    ),
    "chat_template.json": lambda f: write_field(f, "chat_template.json", template("legacy")),
    "chat_template.jinja": lambda f: (f / "chat_template.jinja").write_text(template("file")),
    "additional, one by one": lambda f: write_additional(f, "tool_use", "rag"),
    "additional, a default": lambda f: write_additional(f, "default", "tool_use"),
    "tokenizer_config.json": lambda f: write_field(
        f, "tokenizer_config.json", template("tokenizer")
    ),
    "a list": lambda f: write_field(
        f, "tokenizer_config.json", named("tool_use", "default", "rag")
    ),
    "a list without default": lambda f: write_field(
        f, "tokenizer_config.json", named("tool_use", "rag")
    ),
}


def write_tokenizer(folder: Path, adds_bos: bool = False) -> None:
    folder.mkdir(exist_ok=True)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["<s>", "</s>"])
    if adds_bos:
        words.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    words.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "TokenizersBackend", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def read(folder: Path, sees: bool) -> CheckpointConfig:
    raw = {"model_type": "llava" if sees else "llama"} | ({"vision_config": {}} if sees else {})
    (folder / "config.json").write_text(json.dumps(raw))
    return CheckpointConfig(raw, raw["model_type"], None, "", {}, {}, None, set(), None)


def theirs(folder: Path, sees: bool) -> str | None:
    """What transformers makes of `ASKED`; None if it refuses, or has no template."""
    try:
        whole = (TextHalf if sees else AutoTokenizer).from_pretrained(folder)
        if sees and whole.chat_template is not None:
            return str(whole.apply_chat_template(ASKED))
        tokenizer = whole.tokenizer if sees else whole
        return str(tokenizer.apply_chat_template(ASKED, tokenize=False))
    except ValueError:
        return None


def ours(folder: Path, config: CheckpointConfig) -> str | None:
    try:
        tokenizer = load_tokenizer(folder, config)
    except BrokenTokenizer:
        return None
    if not tokenizer.has_chat_template:
        return None
    return str(tokenizer.apply_chat_template(ASKED, tokenize=False))


@pytest.mark.parametrize("sees", [True, False], ids=["sees", "text alone"])
@pytest.mark.parametrize("first", PLACES)
def test_the_template_that_counts(first: str, sees: bool, tmp_path: Path) -> None:
    """For every two places, also where each could hold the tokenizer's."""
    places = list(PLACES)
    for i, second in enumerate(places[places.index(first) :]):
        folder = tmp_path / str(i)
        write_tokenizer(folder)
        for place in (first, second):
            PLACES[place](folder)
        config = read(folder, sees)
        expected = theirs(folder, sees)
        legacy = "chat_template.json" in (first, second)
        if expected is None and legacy:
            # Its own reader refuses other files beside it, and the tokenizer does not read it.
            assert ours(folder, config) in (None, "legacy: said", "processor: said"), second
        else:
            assert ours(folder, config) == expected, second


@pytest.mark.parametrize("sees", [True, False], ids=["sees", "text alone"])
@pytest.mark.parametrize("written", [True, False], ids=["template's", "no template's"])
@pytest.mark.parametrize("added", [True, False], ids=["tokenizer's", "no tokenizer's"])
def test_bos(sees: bool, written: bool, added: bool, tmp_path: Path) -> None:
    """Once, if the template writes it or the tokenizer of a model that sees adds it."""
    write_tokenizer(tmp_path, adds_bos=added)
    made = ("{{ bos_token }} " if written else "") + "{{ messages[0].content + ' more' }}"
    (tmp_path / "chat_template.jinja").write_text(made)
    config = read(tmp_path, sees)
    tokenizer = load_tokenizer(tmp_path, config)
    encoder = MessageEncoder(
        ChatTemplate(tokenizer, None, sees), TextEncoder(tokenizer), tokenizer.decode, 9, sees
    )
    found = encoder.encode([Message("user", "said")]).tokens
    if sees:
        expected = TextHalf.from_pretrained(tmp_path).apply_chat_template(ASKED, tokenize=True)
    else:
        plain: Any = AutoTokenizer.from_pretrained(tmp_path)
        expected = plain.apply_chat_template(ASKED, tokenize=True, return_dict=False)
    assert found == list(expected)
    assert found == [1] * (written or (added and sees)) + [3, 4]
