"""What a load made of a damaged checkpoint, and whether that is right."""

import dataclasses
import hashlib
import math
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from support.damages.basics import ANOTHER, HARMLESS, TYPED, Damage

from model_kit.kit import ModelKit, load_model_kit
from vision_add_ons.errors import CheckpointError, ImageError, UnknownModelType
from vision_add_ons.testing import Photo
from vision_add_ons.weights import parameters

LONGEST_MESSAGE = 400
SAMPLE = "<s> w8 w9 w10 [IMG] w80 the</s>"
UNREAD = ("spatial_patch_size",)
"""Fields that the modules keep and never ask for."""

Portrait = dict[str, Any]


@dataclass
class Outcome:
    kind: str
    error: str
    """The error's type and message, if there was one."""
    failure: str
    """Why this is wrong; empty if it is right."""


def outcome(folder: Path, damage: Damage, whole: Portrait) -> Outcome:
    """Load a damaged checkpoint. `whole` is the portrait of the undamaged one."""
    try:
        kit = load_model_kit(folder)
    except CheckpointError as error:
        return Outcome(TYPED, type(error).__name__, _bad_message(error, folder, damage))
    except (Exception, SystemExit) as error:
        last = traceback.format_exc(limit=-3)
        return Outcome("other error", type(error).__name__, f"not a typed error: {last}")
    found = portrait(kit)
    if found == whole:
        kind, failure = HARMLESS, ""
    else:
        changes = sorted(k for k in {*found, *whole} if found.get(k) != whole.get(k))
        changes = [f"{k}: {whole.get(k)!r:.80} -> {found.get(k)!r:.80}" for k in changes]
        kind, failure = ANOTHER, _not_running(kit)
        if failure:
            failure += f" ({'; '.join(changes)[:500]})"
    if kind not in damage.accepted:
        failure = "loaded without a word" + (f": {changes[:5]}" if kind == ANOTHER else "")
    return Outcome(kind, "", failure)


def _bad_message(error: CheckpointError, folder: Path, damage: Damage) -> str:
    message = str(error)
    if not message.isprintable() or "Traceback" in message:
        return f"not one plain line: {message!r}"
    # A model type that is not known is told all those that are.
    length = len(message.replace(str(folder), ""))
    if length > LONGEST_MESSAGE and not isinstance(error, UnknownModelType):
        return f"a message of {length} characters: {message}"
    said = message.replace("_", " ")
    if not any(word.replace("_", " ") in said for word in damage.words):
        return f"names nothing that was damaged: {type(error).__name__}: {message}"
    return ""


# --- which model it is --------------------------------------------------------------------------


def portrait(kit: ModelKit) -> Portrait:
    """What makes two loaded models the same: equal portraits give equal answers."""
    tokenizer = kit.tokenizer
    ids = tokenizer.encode(SAMPLE)
    ends = kit.config.eos_token_ids | set(tokenizer.eos_token_ids)
    found: Portrait = {
        "add-on": type(kit.add_on).__name__,
        "decoder type": kit.config.decoder_type,
        "end of text": sorted(i for i in ends if i < kit.vocab_size),  # others are never met
        "context": kit.max_context,
        "vocabulary size": kit.vocab_size,
        "vocabulary": _digest(repr(sorted(tokenizer.get_vocab().items())).encode()),
        "encoded": ids,
        "decoded": tokenizer.decode(ids),
        "beginning": tokenizer.bos_token,
        "template": tokenizer.chat_template,
    }
    parts: dict[str, Any] = {"decoder": kit.text_model}
    for name, value in vars(kit.add_on).items() if kit.add_on is not None else ():
        if isinstance(value, nn.Module):
            parts[name] = value
        else:
            found[f"add-on {name}"] = value.tolist() if isinstance(value, mx.array) else value
    for part, module in parts.items():
        for name, array in parameters(module).items():
            data = np.array(array.view(mx.uint8) if array.dtype == mx.bfloat16 else array)
            about = (array.shape, str(array.dtype), _digest(data.tobytes()))
            found[f"{part}.{name}"] = about
        found |= {f"{part}: {name}": value for name, value in _settings(module)}
    return found


def _settings(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a module holds beside its arrays: sizes, factors, names."""
    for path, one in module.named_modules():
        for name, value in vars(one).items():
            if dataclasses.is_dataclass(value):
                for field, one in vars(value).items():
                    if field not in UNREAD:
                        yield f"{path}.{name}.{field}", repr(one)
            elif not name.startswith("_no_grad") and isinstance(value, int | float | str | tuple):
                yield f"{path}.{name}", value


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _not_running(kit: ModelKit) -> str:
    """Why a model that loaded gives no answer; nothing if it does."""
    try:
        assert kit.text_model is not None
        logits = kit.text_model(mx.array([[1, 9, 10, 11]]))[0, -1]
        if not math.isfinite(float(mx.abs(logits.astype(mx.float32)).max())):
            return "loaded, but its logits are not finite"
        if kit.add_on is not None:
            photo = Photo(40, 30, 5)
            rows = kit.add_on.encode_image(photo)
            if rows.shape[0] != kit.add_on.row_count(photo):
                return f"loaded, but a picture gives {rows.shape[0]} rows"
            if not math.isfinite(float(mx.abs(rows.astype(mx.float32)).max())):
                return "loaded, but its rows are not finite"
    except ImageError:
        return ""
    except Exception as error:
        return f"loaded, but does not run: {type(error).__name__}: {str(error)[:200]}"
    return ""
