"""Which of a checkpoint's chat templates counts: the one that its processor would take."""

from pathlib import Path
from typing import Any

from model_kit.blame import running
from model_kit.config import CheckpointConfig
from vision_add_ons.errors import BrokenTokenizer
from vision_add_ons.json_files import read_json_if_there

PROCESSOR, LEGACY, FILE, TOKENIZER = (
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "tokenizer_config.json",
)


def find_template(folder: Path, config: CheckpointConfig, own: Any) -> tuple[Any, str]:
    """A checkpoint's chat template, and where it stands; None where there is none.

    `own` is what its tokenizer read from chat_template.jinja or tokenizer_config.json: a template,
    or several by name. A model that sees takes its processor's instead. The order is that of
    transformers 5: processor_config.json, chat_template.json (of transformers 4), then
    chat_template.jinja, then the tokenizer's, then what the family supplies, which is noted in
    `config.assumed`. Raises `BrokenTokenizer` for several templates with none named `default`.
    """
    if config.sees:
        for name in (PROCESSOR, LEGACY):
            template = _default(_read(folder, name), name)
            if template is not None:
                return template, name
        if (folder / FILE).is_file():
            # A tokenizer would let a default in additional_chat_templates go before it.
            return (folder / FILE).read_text(encoding="utf-8"), FILE
    name = FILE if (folder / FILE).is_file() else TOKENIZER
    if _default(own, name) is not None:
        return own, name
    if (template := _default(_read(folder, LEGACY), LEGACY)) is not None:
        return template, LEGACY
    if config.add_on is not None:
        with running(config.add_on):
            supplied = config.add_on.default_chat_template(config.raw, folder)
        if supplied is not None:
            source = f"{config.add_on.__name__}'s own"
            config.assumed.append(f"chat template: {source}")
            return supplied, source
    return None, ""


def _read(folder: Path, name: str) -> Any:
    return read_json_if_there(folder / name).get("chat_template")


def _default(templates: Any, name: str) -> str | None:
    """The template that is used where none is asked for by name."""
    if isinstance(templates, list):
        named = [t for t in templates if isinstance(t, dict)]
        templates = {t.get("name"): t.get("template") for t in named}
    if isinstance(templates, dict):
        if templates and "default" not in templates:
            known = ", ".join(map(str, templates))
            raise BrokenTokenizer(
                f"{name} has several chat templates and none named default ({known}); name one so"
            )
        templates = templates.get("default")
    return templates if isinstance(templates, str) else None
