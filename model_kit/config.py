"""config.json in every dialect, turned into what mlx-lm's model classes read.

transformers 4 wrote `rope_theta` and `rope_scaling` beside the other fields; transformers 5 writes
one `rope_parameters`, which mlx-lm's classes mostly do not know and would silently drop. Fields
that a config leaves out have the defaults of transformers' config classes, which differ from those
of mlx-lm's (`tie_word_embeddings`, `num_key_value_heads`). So the config is resolved by the class
that defined it, then written in the fields that the mlx-lm class has.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_kit.blame import running
from model_kit.decoder_modules import (
    decoder_module_name,
    exact_rope_types,
    model_fields,
    scales_rope,
)
from model_kit.sampling_defaults import SamplingDefaults, sampling_defaults
from model_kit.schemes import check_scheme, mlx_entry
from vision_add_ons.base import VisionAddOn
from vision_add_ons.errors import (
    BrokenConfig,
    CheckpointNotFound,
    UnknownModelType,
    UnsupportedCheckpoint,
)
from vision_add_ons.json_files import read_json, read_json_if_there
from vision_add_ons.registry import OTHER_LAYOUTS, find_add_on, registered, served_towers

# Activations that mlx-lm's classes have built in, in all their spellings.
BUILT_IN_ACTIVATIONS = {
    "hidden_act": ("silu", "swish"),
    "hidden_activation": ("gelu_pytorch_tanh",),
}
# Computations that some mlx-lm classes leave out.
LEFT_OUT = ("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention")
# Fields that say nothing of their own where they are left out.
NOT_TOLD = {"rope_parameters", "head_dim", "per_layer_config"}
# What numbers can be, by their names. Classes make their layers before anything is compared with
# the weights, so a count that is only wrong would fill the memory.
SANE = {
    ".*(layers?|depth)": (-1000, 1000),  # those below 0 count from the last: vision_feature_layer
    "(.*norm.*_)?(eps|epsilon)": (1e-12, 0.1),
    ".*rope_(theta|local_base_freq)": (1, 1e11),
    "factor": (1e-3, 1e4),
    "query_pre_attn_scalar": (1e-6, 1e6),
    "head_dim": (1, 1e5),
    ".*_token_(id|index)": (-1, 2**31 - 1),
    "max_position_embeddings": (-1, 1e8),
    "sliding_window": (0, 1e8),
    "sliding_window_pattern": (1, 1e8),
}


@dataclass
class CheckpointConfig:
    """What a checkpoint folder's JSON files say, in one form."""

    raw: dict[str, Any]
    """config.json as it stands."""
    model_type: str
    add_on: type[VisionAddOn] | None
    """The vision add-on that the model type asks for; None for a text model."""
    decoder_type: str
    """The text decoder's own model type."""
    decoder: dict[str, Any]
    """The decoder's config in the dialect that its mlx-lm class reads."""
    decoder_prefixes: Mapping[str, str | None]
    """How the decoder's weight names become mlx-lm's; see `VisionAddOn.decoder_prefixes`."""
    quantization: dict[str, Any] | None
    """mlx's `quantization` entry for the decoder."""
    eos_token_ids: set[int]
    max_context: int | None
    """Positions the model was made for; None if the config does not say."""
    assumed: list[str] = field(default_factory=list)
    """One line for each value the config left out and a default was taken for."""
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    """How generation_config.json wants answers drawn."""
    chat_template: str = ""
    """Where the chat template stands; known once the tokenizer is loaded."""

    @property
    def sees(self) -> bool:
        """Whether the checkpoint has eyes, also where they are not known or not loaded."""
        return self.add_on is not None or "vision_config" in self.raw


def read_config(
    folder: Path, decoder_only: bool = False, add_on: type[VisionAddOn] | None = None
) -> CheckpointConfig:
    """Read a checkpoint folder's config.json and generation_config.json.

    `decoder_only` serves the text half of a checkpoint whose vision half is not known. `add_on`
    serves it in place of the one that the registry names. Raises `CheckpointNotFound`,
    `BrokenConfig`, `UnknownModelType` or `UnsupportedCheckpoint`.
    """
    if not folder.is_dir():
        raise CheckpointNotFound(f"there is no folder {folder}; give the folder of a checkpoint")
    for file in folder.iterdir():
        # To open a pipe would wait for whoever writes to it.
        if file.exists() and not file.is_file() and not file.is_dir():
            raise BrokenConfig(f"{file} is neither a file nor a folder; fetch it again")
    if not (folder / "config.json").is_file():
        raise CheckpointNotFound(f"{folder} holds no config.json, so it is no checkpoint folder")
    raw = read_json(folder / "config.json")
    _check_values(raw)
    assumed: list[str] = []
    model_type = _model_type(raw, assumed)
    tower = _vision_tower(raw)
    if add_on is None:
        add_on = find_add_on(model_type, tower)
    elif model_type not in add_on.model_types:
        raise UnsupportedCheckpoint(
            f"{add_on.__name__} serves {' and '.join(add_on.model_types)}, but config.json's "
            f"model_type is {model_type!r}"
        )
    text = raw
    prefixes: Mapping[str, str | None] = {"": ""}
    if add_on is not None:
        with running(add_on):
            text, lines = add_on.decoder_config(raw)
        assumed += lines
        prefixes = add_on.decoder_prefixes
    elif "vision_config" in raw or served_towers(model_type):
        if not decoder_only:
            raise UnsupportedCheckpoint(_unserved(raw, model_type, tower))
        text, _ = VisionAddOn.decoder_config(raw)
        prefixes = VisionAddOn.decoder_prefixes
    decoder_type = text.get("model_type", model_type)
    if not isinstance(decoder_type, str):
        raise BrokenConfig(f"text_config's model_type must be a string, not {decoder_type!r}")
    check_scheme(folder, decoder_module_name(decoder_type), raw, text)
    resolved = _resolve(decoder_type, text, assumed)
    decoder = _for_mlx_lm(decoder_type, resolved)
    generation = read_json_if_there(folder / "generation_config.json")
    sampling = sampling_defaults(generation)
    return CheckpointConfig(
        raw=raw,
        model_type=model_type,
        add_on=add_on,
        decoder_type=decoder_type,
        decoder=decoder,
        decoder_prefixes=prefixes,
        quantization=mlx_entry(raw, text, prefixes),
        eos_token_ids=_eos_token_ids(raw, text, generation),
        max_context=_max_context(resolved),
        assumed=[*assumed, *sampling.assumed],
        sampling=sampling,
    )


def _check_values(config: dict[str, Any]) -> None:
    """Refuse values that no model has: what they would give is never meant, or never ends."""
    for name, value in config.items():
        if name == "rope_theta" and isinstance(value, dict | str):
            raise BrokenConfig(f"config.json's rope_theta must be a number, not {str(value)[:40]}")
        if isinstance(value, dict):
            _check_values(value)
        elif name in ("rope_parameters", "rope_scaling") and value is not None:
            # An empty list or a zero would pass for none.
            raise BrokenConfig(f"config.json's {name} must be an object, not {str(value)[:40]}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            bounds = (limits for known, limits in SANE.items() if re.fullmatch(known, name))
            low, high = next(bounds, (-math.inf, math.inf))
            if not low <= value <= high:  # no bounds hold what is not a number
                raise BrokenConfig(f"config.json's {name} cannot be {str(value)[:40]}")


def _model_type(raw: dict[str, Any], assumed: list[str]) -> str:
    model_type = raw.get("model_type")
    if isinstance(model_type, str) and model_type:
        return model_type
    if "model_type" in raw:
        raise BrokenConfig(f"config.json's model_type must be a string, not {model_type!r}")
    if "arch_specifier" in raw or "vision_backbone_id" in raw:
        assumed.append("model_type: prismatic (absent; the other fields are Prismatic's)")
        return "prismatic"
    raise UnknownModelType("config.json has no model_type, so there is no telling what it is")


def _vision_tower(raw: dict[str, Any]) -> str | None:
    vision = raw.get("vision_config") or {}
    if not isinstance(vision, dict):
        raise BrokenConfig(f"vision_config of config.json must be an object, not {vision!r:.40}")
    return vision.get("model_type")


def _unserved(raw: dict[str, Any], model_type: str, tower: str | None) -> str:
    asked, known = repr(model_type), ", ".join(sorted(registered()))
    if served := ", ".join(served_towers(model_type)):
        asked += f" whose vision_config.model_type is {tower or 'absent'} (only {served})"
    # Without it there is no telling what its text half is.
    alone = ", or load with decoder_only=True for text alone" if "text_config" in raw else ""
    if instead := OTHER_LAYOUTS.get(model_type):
        return f"checkpoints of model type {asked} are not served: use {instead}{alone}"
    return (
        f"no vision add-on serves model type {asked}: install a package with an add-on named "
        f"{model_type!r} (known: {known}){alone}"
    )


def _resolve(model_type: str, text: dict[str, Any], assumed: list[str]) -> dict[str, Any]:
    """Fill in what the config leaves out, by transformers' class for the model type."""
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return dict(text)
    try:
        defaults = CONFIG_MAPPING[model_type](**text).to_dict()
    except Exception as error:
        # The config classes validate with several unrelated exception types.
        message = " ".join(str(error).split())
        raise BrokenConfig(f"config.json does not describe a {model_type}: {message}") from error
    resolved = {**defaults, **text}
    wanted = model_fields(model_type)
    for name, own in CONFIG_MAPPING[model_type].attribute_map.items():
        if name in wanted and own in resolved:  # the name that transformers 4 wrote
            resolved.setdefault(name, resolved[own])
    plain = CONFIG_MAPPING[model_type]().to_dict()
    for name in ("layer_types", "sliding_window"):
        if name not in plain:  # then transformers' class ignores it, and mlx-lm's would not
            resolved.pop(name, None)
    _check_fields(model_type, resolved, plain)
    if "sliding_window_pattern" in wanted and "layer_types" not in wanted:
        _layer_pattern(model_type, resolved)
    resolved["rope_parameters"] = defaults.get("rope_parameters") or text.get("rope_parameters")
    for name in sorted((wanted & set(defaults)) - set(text) - NOT_TOLD):
        if defaults[name] is not None:
            assumed.append(f"{name}: {_brief(defaults[name])} (default of {model_type})")
    return resolved


def _check_fields(model_type: str, resolved: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Refuse what transformers would compute and mlx-lm's class leaves out."""
    fields = model_fields(model_type)
    for name, spellings in BUILT_IN_ACTIVATIONS.items():
        built_in, asked = defaults.get(name), resolved.get(name)
        if built_in in spellings and asked is not None and asked not in spellings:
            raise UnsupportedCheckpoint(
                f"{name} {asked!r} is not supported: mlx-lm's {model_type} computes {built_in}"
            )
    for name in LEFT_OUT:
        if name not in fields and resolved.get(name):
            raise UnsupportedCheckpoint(f"{name} is not supported by mlx-lm's {model_type}")


def _layer_pattern(model_type: str, resolved: dict[str, Any]) -> None:
    """Write transformers 5's list of layer types as the period that some mlx-lm classes read."""
    kinds = resolved.get("layer_types")
    if not isinstance(kinds, list) or not kinds:
        return
    if "full_attention" not in kinds:
        raise UnsupportedCheckpoint(
            "layer_types, or a sliding_window_pattern beyond num_hidden_layers, leaves no layer "
            f"of full_attention, which mlx-lm's {model_type} cannot do without"
        )
    period = kinds.index("full_attention") + 1
    resolved["sliding_window_pattern"] = period
    for i, kind in enumerate(kinds):
        if kind != ("sliding_attention" if (i + 1) % period else "full_attention"):
            raise UnsupportedCheckpoint(
                f"layer_types are not periodic, which mlx-lm's {model_type} cannot express"
            )


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _for_mlx_lm(model_type: str, resolved: dict[str, Any]) -> dict[str, Any]:
    """Write the rotary embedding's parameters in the fields that the mlx-lm class has."""
    fields = model_fields(model_type)
    config = dict(resolved)
    rope = dict(config.get("rope_parameters") or {})
    if "type" in rope:
        rope.setdefault("rope_type", rope.pop("type"))
    layered = {k: v for k, v in rope.items() if isinstance(v, dict)}
    for parameters in layered.values() if layered else [rope]:
        _check_rope(parameters, exact_rope_types(model_type))
    scaled = not layered and rope.get("rope_type", "default") != "default"
    if scaled and "rope_parameters" in fields and not scales_rope(model_type):
        raise UnsupportedCheckpoint(
            f"rope_type {rope['rope_type']!r} is not supported: mlx-lm's {model_type} turns by "
            "rope_theta alone"
        )
    if "rope_parameters" in fields or not rope:
        return config
    if layered:
        full = layered.get("full_attention", {})
        local = layered.get("sliding_attention", full)
        if "rope_local_base_freq" not in fields or local.get("rope_type") != "default":
            if any(parameters != full for parameters in layered.values()):
                raise UnsupportedCheckpoint(
                    f"rope_parameters differ between layer types, which mlx-lm's {model_type} "
                    "cannot express"
                )
        else:
            config["rope_local_base_freq"] = local.get("rope_theta", 10000.0)
        rope = full
    if "rope_theta" not in fields:
        raise UnsupportedCheckpoint(f"mlx-lm's {model_type} has no field for rope_parameters")
    config["rope_theta"] = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    if "partial_rotary_factor" in fields and "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope["partial_rotary_factor"]
    scaling = {k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")}
    if scaling.get("rope_type", "default") == "default":
        config["rope_scaling"] = None
    elif "rope_scaling" in fields:
        config["rope_scaling"] = scaling
    else:
        raise UnsupportedCheckpoint(
            f"mlx-lm's {model_type} has no rope_scaling, but the checkpoint asks for {scaling}"
        )
    return config


def _check_rope(rope: dict[str, Any], known: tuple[str, ...]) -> None:
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in known:
        raise UnsupportedCheckpoint(
            f"rope_type {rope_type!r} is not supported (known: {', '.join(known)})"
        )
    for name in ("rope_theta", "factor"):
        value = rope.get(name, 1.0)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise BrokenConfig(f"rope_parameters' {name} must be a number above 0, not {value!r}")
    if rope_type == "yarn":
        if bool(rope.get("mscale")) != bool(rope.get("mscale_all_dim")):
            raise UnsupportedCheckpoint("yarn's mscale and mscale_all_dim must be given together")
        for name, neutral in (("attention_factor", None), ("truncate", True)):
            if rope.get(name, neutral) != neutral:
                raise UnsupportedCheckpoint(f"rope_parameters' {name} is not supported for yarn")


def _eos_token_ids(*configs: dict[str, Any]) -> set[int]:
    ids: set[int] = set()
    for source in configs:
        value = source.get("eos_token_id")
        for token in value if isinstance(value, list) else [value]:
            if token is None:
                continue
            if not isinstance(token, int) or isinstance(token, bool) or token < 0:
                raise BrokenConfig(f"eos_token_id must be token ids, not {value!r}")
            ids.add(token)
    return ids


def _max_context(resolved: dict[str, Any]) -> int | None:
    limit = resolved.get("max_position_embeddings")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise BrokenConfig(f"max_position_embeddings must be a number of tokens, not {limit!r}")
    return limit
