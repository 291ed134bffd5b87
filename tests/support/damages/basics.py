"""What a damage is, and how one is written into a copy of a checkpoint."""

from dataclasses import dataclass
from pathlib import Path

TYPED, HARMLESS, ANOTHER = "typed error", "harmless", "another model"
TENSORS = (
    *(".weight", ".bias", ".scales", ".biases", "tensor", "pos_embed"),
    *("the checkpoint lacks ", "the model has no use for "),
)
"""By which messages name a tensor under any prefix, or one that they call by another name."""


@dataclass(frozen=True)
class Damage:
    name: str
    """For messages."""
    accepted: tuple[str, ...]
    """Outcomes that are right."""
    words: tuple[str, ...]
    """What an error's message may name it by: one of them is enough."""


class Undamaged(Exception):
    """This damage does not apply to this file, or leaves it as it was."""


def damage_of(file: Path, what: str, accepted: tuple[str, ...], *words: str) -> Damage:
    return Damage(f"{file.name}: {what}", accepted, (file.name, file.parent.name, *words))


def replace(file: Path, content: bytes) -> None:
    """In place of the link, so that the whole checkpoint stays as it is."""
    if content == file.read_bytes():
        raise Undamaged
    file.unlink()
    file.write_bytes(content)
