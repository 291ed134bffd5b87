"""config.json and the processor's files: what is not served exactly is refused, by name."""

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from vision_add_ons.errors import AddOnError
from vision_add_ons.testing.comparison import numbers
from vision_add_ons.testing.kit import Kit, opened
from vision_add_ons.testing.reference import REMOVED, Refused

NONSENSE = "nobody_knows"
ABOUT = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "model_type",
    "torch_dtype",
    "transformers_version",
    "vision_config.dtype",
    "vision_config.torch_dtype",
    "vision_config.transformers_version",
)
"""Fields with texts that describe a checkpoint and not what is computed; the whole model's
`model_type` is compared with the add-on's by whoever loads it."""


def check_refused_values(kit: Kit, every: int = 1) -> None:
    """Each value that the reference lists is refused, by the error and the name that it tells; or
    one of so many."""
    faults = [_refusal(kit, Refused(*one)) for one in kit.reference.refused[::every]]
    found = [fault for fault in faults if fault]
    assert not found, "; ".join(found)


def _refusal(kit: Kit, wanted: Refused) -> str | None:
    """What is wrong with how one value is refused; None if nothing is."""
    value = "nothing" if wanted.value is REMOVED else repr(wanted.value)
    what = f"{wanted.path} = {value}"
    folder = kit.changed({wanted.path: wanted.value})
    *_, outer, name = ("", *re.split(r"[./]", wanted.path))
    told = wanted.told or re.escape(outer if name == "model_type" else name)
    try:
        kit.open(folder)
    except AddOnError as error:  # raised for its code, and no refusal of its own
        return f"{what} must be refused by {wanted.error.__name__}, but {error}"
    except wanted.error as error:
        named = re.search(told, str(error))
        return None if named else f"{what}: the error does not name it: {error}"
    except Exception as error:
        return f"{what} must be refused by {wanted.error.__name__}, not {error!r}"
    return f"{what} is accepted: refuse it (see vision_add_ons.configs.check_fields)"


def check_unknown_values(kit: Kit) -> None:
    """A text that nobody knows, in any field outside the decoder's, is refused or changes nothing.

    Those that are taken must be listed as `ignored` by the reference.
    """
    photo = kit.case("unknown values").photo(*kit.reference.sizes[0])
    expected = numbers(kit.eyes.encode_image(photo))
    texts = dict(_texts(kit.config))
    if isinstance(kit.config.get("vision_config"), dict):
        # Which tower, and how it computes: asked also where a config leaves it to the defaults.
        texts |= dict.fromkeys(("vision_config.model_type", "vision_config.hidden_act"), NONSENSE)
    for path, value in texts.items():
        if path in ABOUT or path.split(".")[0] == "text_config":
            continue
        folder = kit.changed({path: value})
        *_, outer, name = ("", *path.split("."))
        eyes, told = opened(kit, folder, f"{path} = {value!r}")
        if eyes is None:
            named = outer if name == "model_type" else name
            assert named in told, f"{path} = {value!r}: the error must name it: {told}"
            continue
        assert path in kit.reference.ignored, (
            f"{path} = {value!r} is accepted: refuse what is not served (check_fields of "
            "vision_add_ons.configs), or list the field as `ignored` in the reference"
        )
        assert np.array_equal(numbers(eyes.encode_image(photo)), expected), (
            f"{path} is listed as ignored, but changes the rows"
        )


def check_the_config_is_left_alone(kit: Kit) -> None:
    """Neither `decoder_config` nor loading changes the config that it is given."""
    config = json.loads((kit.folder / "config.json").read_text())
    given = copy.deepcopy(config)
    text, _ = kit.add_on.decoder_config(given)
    text["nobody"] = "knows"
    kit.add_on(kit.folder, given)
    assert given == config, "the add-on changes the config that it is given: copy it first"


def _texts(config: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """The paths of all texts, and of all lists of texts, each with nonsense in its place."""
    for name, value in config.items():
        if isinstance(value, str):
            yield where + name, NONSENSE
        elif isinstance(value, list) and value and all(isinstance(v, str) for v in value):
            yield where + name, [NONSENSE] * len(value)
        elif isinstance(value, dict):
            yield from _texts(value, f"{where}{name}.")
