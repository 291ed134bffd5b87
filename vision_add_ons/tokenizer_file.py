"""What the files of a checkpoint's tokenizer say of single tokens, read without the tokenizer."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vision_add_ons.errors import BrokenConfig, BrokenTokenizer
from vision_add_ons.json_files import read_json_if_there


def tokens_of(folder: Path) -> dict[str, int]:
    """The ids of the tokens in a folder's tokenizer.json, by their texts.

    What it holds in another form is none.
    """
    tokenizer = read_json_if_there(folder / "tokenizer.json")
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    pairs = list(vocabulary.items()) if isinstance(vocabulary, dict) else []
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict):
            pairs.append((entry.get("content"), entry.get("id")))
    return {token: number for token, number in pairs if type(number) is int}


def named_tokens(folder: Path, usual: Mapping[str, str]) -> dict[str, Any]:
    """What a folder's tokenizer_config.json has under these names, as it stands there, or the
    `usual` text."""
    told = read_json_if_there(folder / "tokenizer_config.json")
    extra = told.get("extra_special_tokens")
    told |= extra if isinstance(extra, dict) else {}
    return {name: told.get(name, text) for name, text in usual.items()}


def token_text(given: Any) -> Any:
    """The text of a token, which may also be told as an object."""
    return given.get("content") if isinstance(given, dict) else given


def check_token_id(field: str, told: Any, token: str, known: int) -> None:
    """Raise `BrokenConfig` where a config's id of a token is not the tokenizer's."""
    if told != known:
        raise BrokenConfig(f"{field} is {told}, but the tokenizer's {token} is {known}")


def token_ids(folder: Path, tokens: Iterable[Any], hint: str = "add it") -> list[int]:
    """The ids of these tokens.

    Raises `BrokenTokenizer` naming the first that tokenizer.json lacks; `hint` says what to do.
    """
    known = tokens_of(folder)
    found = []
    for token in tokens:
        if not isinstance(token, str) or token not in known:
            raise BrokenTokenizer(f"{folder / 'tokenizer.json'} has no token {token!r}; {hint}")
        found.append(known[token])
    return found
