"""Reading the config of a checkpoint with pictures: absent fields, and fields not served."""

import copy
from pathlib import Path
from typing import Any

from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint
from vision_add_ons.libraries import import_library, undisturbed


def resolve_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json with every absent field as transformers' config class has it, nested ones too.

    Saved configs leave out what equals the defaults, and the defaults are those of the class that
    the model type names. Raises `BrokenConfig`, or `UnsupportedCheckpoint` for a half that it
    does not know.
    """
    transformers = import_library("transformers")
    with undisturbed():
        return _resolve(config, transformers.CONFIG_MAPPING)


def _resolve(config: dict[str, Any], mapping: Any) -> dict[str, Any]:
    for half in ("text_config", "vision_config"):
        nested = config.get(half)
        model_type = nested.get("model_type") if isinstance(nested, dict) else None
        if isinstance(model_type, str) and model_type not in mapping:
            raise UnsupportedCheckpoint(f"{half}.model_type {model_type!r} is not known")
    try:
        # They add fields to the nested objects that they are given.
        own = copy.deepcopy(config)
        # Not by `from_dict`, which does the same, and writes the whole config out for its log.
        resolved: dict[str, Any] = mapping[config["model_type"]](**own).to_dict()
    except Exception as error:
        # The config classes validate with several unrelated exception types.
        message = " ".join(str(error).split())
        raise BrokenConfig(f"config.json describes no {config['model_type']}: {message}") from error
    return resolved


def checkpoint_name(folder: Path) -> str:
    """A checkpoint folder's name; that of the model, where the hub's cache has it by its commit."""
    folder = folder.absolute()
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name
    return folder.name


def check_fields(config: dict[str, Any], where: str, **served: tuple[Any, ...]) -> None:
    """Raise `UnsupportedCheckpoint` for a field whose value is none of those that are served."""
    for field, values in served.items():
        if config.get(field) not in values:
            known = " or ".join(map(repr, values))
            raise UnsupportedCheckpoint(
                f"{where}.{field} {config.get(field)!r} is not supported (only {known})"
            )


def positive(config: dict[str, Any], where: str, *fields: str) -> None:
    """Raise `BrokenConfig` for a field that is no whole number above 0."""
    for field in fields:
        value = config.get(field)
        if type(value) is not int or value < 1:
            raise BrokenConfig(f"{where}.{field} must be a whole number above 0, not {value!r}")


def check_heads(vision: dict[str, Any], where: str) -> None:
    """Raise `BrokenConfig` for a tower whose width its heads do not divide."""
    positive(vision, where, "hidden_size", "num_attention_heads")
    width, heads = vision["hidden_size"], vision["num_attention_heads"]
    if width % heads:
        raise BrokenConfig(f"{where}.num_attention_heads {heads} does not divide {width}")


def feature_states(chosen: int | list[int], layers: int) -> list[int]:
    """`vision_feature_layer` as the numbers of layers after which features are taken."""
    try:
        states = [range(layers + 1)[i] for i in (chosen if isinstance(chosen, list) else [chosen])]
    except IndexError:
        states = []
    if not states:
        raise BrokenConfig(f"vision_feature_layer {chosen} does not name states of {layers} layers")
    return states
