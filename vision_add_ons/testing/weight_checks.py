"""Weights: each tensor of the vision half is needed, has its shape, and is not one too many."""

import re

import mlx.core as mx
import numpy as np

from vision_add_ons.testing.comparison import numbers
from vision_add_ons.testing.folders import tensors_of
from vision_add_ons.testing.kit import Kit, opened

SAMPLE = 12
"""Tensors that are tried in one way, drawn anew for each run where there are more."""

Tensors = dict[str, mx.array]


def vision_half(kit: Kit) -> list[str]:
    """The names of the tensors that are not the decoder's, by the add-on's `decoder_prefixes`."""
    names = []
    for name in tensors_of(kit.folder):
        fits = [own for p, own in kit.add_on.decoder_prefixes.items() if name.startswith(p)]
        if not fits or fits[0] is None:
            names.append(name)
    assert names, "all tensors are the decoder's by decoder_prefixes: nothing is left for pictures"
    return sorted(names)


def check_missing_weights(kit: Kit) -> None:
    """Without a tensor the checkpoint is refused by an error that names it."""
    tensors = tensors_of(kit.folder)
    for name in _some(kit, "missing", vision_half(kit)):
        without = {other: array for other, array in tensors.items() if other != name}
        _must_be_refused(kit, without, name, "is missing", unused=_is_unused(kit, name))


def check_no_vision_half(kit: Kit) -> None:
    """Without any tensor of the vision half the checkpoint is refused, and not served blind."""
    eyes = vision_half(kit)
    decoder = {name: array for name, array in tensors_of(kit.folder).items() if name not in eyes}
    found, told = opened(kit, kit.changed({}, decoder), "a checkpoint without its vision half")
    assert found is None, "a checkpoint without any weight of the vision half is accepted"
    # By whatever prefix the add-on looks for it first.
    needed = {".".join(name.split(".")[-2:]) for name in eyes if not _is_unused(kit, name)}
    assert any(end in told for end in needed), (
        f"a checkpoint without its vision half: the error must name a tensor, but says: {told}"
    )


def check_wrong_shapes(kit: Kit) -> None:
    """A tensor of another shape is refused by an error that names it."""
    tensors = tensors_of(kit.folder)
    for name in _some(kit, "misshapen", vision_half(kit)):
        array = kit.reference.misshapen(name, tensors[name])
        changed = {**tensors, name: array}
        what = f"has shape {array.shape} instead of {tensors[name].shape}"
        _must_be_refused(kit, changed, name, what, unused=_is_unused(kit, name))


def check_surplus_weights(kit: Kit) -> None:
    """A tensor that nothing uses is refused by an error that names it."""
    tensors = tensors_of(kit.folder)
    names = [name for name in vision_half(kit) if not _is_unused(kit, name)]
    surplus = ["nobody_knows.weight"]
    for name in _some(kit, "surplus", names)[: SAMPLE // 2]:
        surplus += [f"{name}.more", f"{name.rpartition('.')[0]}.nobody_knows"]
    for name in surplus:
        _must_be_refused(kit, {**tensors, name: mx.ones((3,))}, name, "is one too many")


def _some(kit: Kit, name: str, names: list[str]) -> list[str]:
    chance = kit.case(f"weights {name}").random
    return names if len(names) <= SAMPLE else chance.sample(names, SAMPLE)


def _is_unused(kit: Kit, name: str) -> bool:
    return any(re.match(pattern, name) for pattern in kit.reference.unused)


def _must_be_refused(
    kit: Kit, tensors: Tensors, name: str, what: str, unused: bool = False
) -> None:
    eyes, told = opened(kit, kit.changed({}, tensors), f"{name} {what}")
    if eyes is None:
        assert not unused, f"{name} {what}, and is refused though the reference calls it unused"
        assert name in told or kit.reference.named(name) in told, (
            f"{name} {what}: the error must name it, but says: {told}"
        )
        return
    assert unused, (
        f"{name} {what}, and the add-on loads all the same: load with load_module and call "
        "refuse_others, or list it as `unused` in the reference"
    )
    photo = kit.case("weights without use").photo(*kit.reference.sizes[0])
    same = np.array_equal(numbers(eyes.encode_image(photo)), numbers(kit.eyes.encode_image(photo)))
    assert same, f"{name} {what}: the reference calls it unused, but the rows change"
