"""The tokens that a checkpoint's tokenizer has, by their texts, without loading the tokenizer."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vision_add_ons.errors import BrokenTokenizer
from vision_add_ons.json_files import read_json_if_there


def token_ids(folder: Path, tokens: Iterable[Any], hint: str = "add it") -> list[int]:
    """The ids of these tokens.

    Raises `BrokenTokenizer` naming the first that tokenizer.json lacks; `hint` says what to do.
    """
    known = _known(read_json_if_there(folder / "tokenizer.json"))
    found = []
    for token in tokens:
        if not isinstance(token, str) or token not in known:
            raise BrokenTokenizer(f"{folder / 'tokenizer.json'} has no token {token!r}; {hint}")
        found.append(known[token])
    return found


def _known(tokenizer: dict[str, Any]) -> dict[str, int]:
    """The tokens of a tokenizer.json; what it holds in another form is none."""
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    pairs = list(vocabulary.items()) if isinstance(vocabulary, dict) else []
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict):
            pairs.append((entry.get("content"), entry.get("id")))
    return {token: number for token, number in pairs if type(number) is int}
