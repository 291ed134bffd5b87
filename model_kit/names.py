"""What a decoder's tensors and layers are called: in its checkpoint, and by mlx-lm."""

from collections.abc import Mapping


def decoder_name(name: str, prefixes: Mapping[str, str | None]) -> str | None:
    """mlx-lm's name of a decoder's weight or layer; None for what is not the decoder's."""
    for prefix, replacement in prefixes.items():
        if name.startswith(prefix):
            return None if replacement is None else replacement + name[len(prefix) :]
    return None
