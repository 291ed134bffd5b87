"""Reading safetensors checkpoints and loading them into modules, with every mismatch named."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from vision_add_ons.errors import (
    BrokenIndex,
    BrokenWeights,
    MissingWeight,
    UnexpectedDtype,
    UnexpectedShape,
    UnexpectedWeight,
    WeightsNotFound,
)
from vision_add_ons.json_files import parse_json
from vision_add_ons.libraries import import_library
from vision_add_ons.quantized import check_scales
from vision_add_ons.safetensors_files import read_safetensors

INDEX = "model.safetensors.index.json"
LONGEST_NAME = 255
"""Characters of a file's name; longer ones are an error of the file system's."""
DERIVED = re.compile(r"(.+[._])?(inv_freq|cos_cached|sin_cached)|(.+\.)?position_ids")
"""What follows from the config alone. Old checkpoints hold such buffers, and transformers ignores
them; so is done here where a module has no parameter of that name."""


def _files_without_index(folder: Path) -> list[Path]:
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise WeightsNotFound(
            f"no model.safetensors in {folder}; the folder must hold the weights in "
            "safetensors form (pickle files are never loaded)"
        )
    return files


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = parse_json(index)["weight_map"]
        names = set(weight_map.values())
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        reason = f"{type(error).__name__}: {str(error)[-100:]}"
        raise BrokenIndex(
            f"{index} is not a readable safetensors index ({reason}); fetch the file again"
        ) from error
    for name in names:
        # An index comes with a download: it must not point outside its own folder.
        if not isinstance(name, str) or Path(name).name != name:
            raise BrokenIndex(f"{index} names {name!r}, which is not a file of this folder")
        if len(name) > LONGEST_NAME or not (index.parent / name).is_file():
            raise BrokenIndex(f"{index} names {name!r}, which is not there; fetch that file too")
    if not names:
        raise BrokenIndex(f"{index} names no file; fetch it again")
    return weight_map


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's tensors. Raises `WeightsNotFound` or `BrokenIndex`."""
    return _files(folder, _home(folder))


def _home(folder: Path) -> dict[str, str]:
    """The file of each tensor by the index; nothing where there is none. Raises `BrokenIndex`."""
    index = folder / INDEX
    return _weight_map(index) if index.exists() else {}


def _files(folder: Path, home: dict[str, str]) -> list[Path]:
    return [folder / name for name in sorted(set(home.values()))] or _files_without_index(folder)


def read_weights(folder: Path) -> dict[str, mx.array]:
    """All tensors of a checkpoint by name. Lazy: only the files' headers are read and checked.

    Where there is an index, it says which files count and for which tensors; else all of
    `model*.safetensors` do.

    Raises `WeightsNotFound`, `BrokenIndex` or `BrokenWeights`.
    """
    home = _home(folder)
    weights: dict[str, mx.array] = {}
    for file in _files(folder, home):
        tensors = read_safetensors(file)
        if home:
            tensors = {name: w for name, w in tensors.items() if home.get(name) == file.name}
        twice = sorted(set(tensors) & set(weights))
        if twice:
            raise BrokenWeights(f"{twice[0]} is in more than one file of {folder}, with no index")
        weights.update(tensors)
    absent = sorted(set(home) - set(weights))
    if absent:
        index = folder / INDEX
        raise BrokenIndex(f"{index} lists {absent[0]}, which is not in {home[absent[0]]}")
    return weights


def parameters(module: nn.Module) -> dict[str, mx.array]:
    """A module's parameters by their full names."""
    return dict(tree_flatten(module.parameters()))


def with_prefix(weights: dict[str, mx.array], prefix: str) -> dict[str, mx.array]:
    """The tensors whose names start with `prefix`, under the rest of their names."""
    return {name[len(prefix) :]: w for name, w in weights.items() if name.startswith(prefix)}


def first_prefix(weights: dict[str, mx.array], prefixes: Sequence[str]) -> str:
    """The first of `prefixes` that any name starts with; for messages, the first if none does."""
    found = (p for p in prefixes if any(name.startswith(p) for name in weights))
    return next(found, prefixes[0])


def refuse_others(weights: dict[str, mx.array], known: Iterable[str]) -> None:
    """Raise `UnexpectedWeight` for a tensor whose name starts with no prefix of `known`.

    Derived buffers (`DERIVED`) are ignored.
    """
    others = [n for n in weights if not n.startswith(tuple(known)) and not DERIVED.fullmatch(n)]
    if others:
        raise UnexpectedWeight(f"the model has no use for {min(others)}")


def channels_last(weights: dict[str, mx.array], name: str, channels: int) -> dict[str, mx.array]:
    """The weights with a convolution's channels at the end, where MLX has them.

    PyTorch's [out, channels, ...] is turned; what a conversion to MLX has turned already stays.
    """
    kernel = weights.get(name)
    if kernel is None or kernel.ndim < 3 or kernel.shape[1] != channels:
        return weights
    return {**weights, name: mx.moveaxis(kernel, 1, -1)}


def check_weights(
    module: nn.Module, weights: dict[str, mx.array], where: str, unused: Iterable[str] = ()
) -> None:
    """Check that `weights` are exactly the parameters of `module`: names, shapes, kinds of number.

    `where` is put before the names in messages; names starting with a prefix of `unused` are
    known to have no use, and derived buffers (`DERIVED`) are ignored. Raises `MissingWeight`,
    `UnexpectedWeight`, `UnexpectedShape` or `UnexpectedDtype`.
    """
    expected = parameters(module)
    missing = sorted(set(expected) - set(weights))
    if missing:
        raise MissingWeight(_named("the checkpoint lacks", where, missing))
    spare = sorted(
        name
        for name in set(weights) - set(expected)
        if not name.startswith(tuple(unused)) and not DERIVED.fullmatch(name)
    )
    if spare:
        raise UnexpectedWeight(_named("the model has no use for", where, spare))
    for name, array in expected.items():
        if weights[name].shape != array.shape:
            raise UnexpectedShape(
                f"{where}{name} has shape {weights[name].shape}, but the config asks for "
                f"{array.shape}"
            )
        kinds = [mx.issubdtype(a.dtype, mx.floating) for a in (weights[name], array)]
        if kinds[0] != kinds[1] or (not kinds[0] and weights[name].dtype != array.dtype):
            raise UnexpectedDtype(
                f"{where}{name} holds {weights[name].dtype}, where {array.dtype} is wanted"
            )


def load_module(
    module: nn.Module,
    weights: dict[str, mx.array],
    where: str,
    unused: Iterable[str] = (),
) -> None:
    """`check_weights`, then load them into `module`, whose layers are quantized where they are."""
    check_scales(module, weights, where)
    quantize_like(module, weights)
    check_weights(module, weights, where, unused)
    known = parameters(module)
    module.load_weights([(n, w) for n, w in weights.items() if n in known], strict=True)
    module.eval()


def quantize_like(module: nn.Module, weights: dict[str, mx.array]) -> None:
    """Quantize those layers of `module` that are quantized in `weights`, and as they are there.

    The tensors' shapes tell bits, group size and mode, whatever names a config knows them by.
    """
    if not any(name.endswith(".scales") for name in weights):
        return
    infer_quant_config = import_library("mlx_lm.utils").infer_quant_config

    def settings(name: str, layer: nn.Module) -> bool | dict[str, Any]:
        if f"{name}.scales" not in weights or not hasattr(layer, "to_quantized"):
            return False
        return infer_quant_config(name, layer, weights)

    nn.quantize(module, class_predicate=settings)


def _named(what: str, where: str, names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{what} {where}{names[0]}{more}"
