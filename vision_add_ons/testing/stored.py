"""A reference out of one file: what another one computed, where its libraries are not installed.

The file is numpy's `.npz`: arrays by names, and `index`, a JSON text with everything else.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save_file

from vision_add_ons import errors
from vision_add_ons.base import VisionAddOn
from vision_add_ons.testing.photo import Photo
from vision_add_ons.testing.reference import REMOVED, Conversation, Reference, Refused
from vision_add_ons.testing.vocabulary import VOCAB

FIELDS = (
    "name",
    "image_token",
    "sizes",
    "more_sizes",
    "dialects",
    "continues",
    "places_pictures",
    "touching",
    "decoder_scale",
    "ignored",
    "unused",
    "means",
    "pixel_sizes",
    "processors",
    "special_tokens",
    "control_tokens",
    "templates",
    "adds_bos",
    "texts",
)
"""What a reference says of itself, and JSON can say, too."""


class NotRecorded(LookupError):
    """A stored reference is asked for what its file does not hold."""


class StoredReference(Reference):
    """What `record` wrote into `file`, to be given to a `Conformance` in place of a class.

    It knows the kit's own prompts at the seed that was recorded, and nothing else: whatever else it
    is asked for raises `NotRecorded`. If the engine's answer leaves the recorded one, `logits` end
    where it does. What is compared with pixels is left to the reference itself. `arrays` is what
    the file holds, by name.
    """

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        with np.load(self.file) as stored:
            self.arrays = {name: stored[name] for name in stored.files}
        index = json.loads(self.arrays.pop("index").tobytes())
        self._take(index)

    def _take(self, index: dict[str, Any]) -> None:
        self.index = index
        self.seed = index["seed"]
        for field, value in index["fields"].items():
            setattr(self, field, value)
        self.refused = [  # type: ignore[misc]
            Refused(path, _value(value), getattr(errors, error), told)
            for path, value, error, told in index["refused"]
        ]

    def _known(self, kind: str, key: str) -> Any:
        if key not in self.index[kind]:
            raise NotRecorded(
                f"{self.file} holds no {kind} for what is asked: it was recorded with another "
                "version of the kit, or of the reference. Record it again (see "
                "vision_add_ons.testing.record)"
            )
        return self.index[kind][key]

    def write(self, folder: Path, dialect: str) -> None:
        files = self._known("checkpoint", dialect)
        for name, text in files["texts"].items():
            (folder / name).write_text(text)
        tensors = {name: self.arrays[array] for name, array in files["tensors"].items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    def before(self, index: int) -> list[int]:
        return list(self.index.get("before", {}).get(str(index), ()))  # old files have none

    def block(self, image: Image.Image) -> list[int]:
        return list(self._known("blocks", digest(image)))

    def rows(self, image: Image.Image) -> np.ndarray:
        return self.arrays[self._known("rows", digest(image))]

    def logits(self, tokens: list[int], images: list[Image.Image], answer: list[int]) -> np.ndarray:
        known = self._known("logits", prompt_key(tokens, images))
        same = 0
        while answer[same : same + 1] and answer[same] == known["answer"][same]:
            same += 1
        # Only what follows the prompt's last token is ever looked at.
        before = np.full((len(tokens) - 1, VOCAB), np.nan, np.float32)
        return np.concatenate([before, self.arrays[known["rows"]][: same + 1]])

    def named(self, tensor: str) -> str:
        return str(self.index["named"].get(tensor, tensor))

    def misshapen(self, tensor: str, array: mx.array) -> mx.array:
        shape = self.index["misshapen"].get(tensor)
        return mx.zeros(shape, array.dtype) if shape else super().misshapen(tensor, array)

    def quantized(self, seed: int, towers: bool) -> Reference | None:
        index = self._known("quantized", str(towers))
        if index is None:
            return None
        other = StoredReference.__new__(StoredReference)
        other.file, other.arrays = self.file, self.arrays
        other._take(index)
        return other

    def own_processor(self, folder: Path) -> "Replaying":
        return Replaying(self, folder)

    def conversations(self) -> Sequence[Conversation]:
        def message(stored: dict[str, Any]) -> dict[str, Any]:
            images = [Image.fromarray(self.arrays[name]) for name in stored["images"]]
            own = {"role": stored["role"], "content": stored["content"]}
            return {**own, "images": images} if images else own

        return [
            Conversation([message(m) for m in one["messages"]], one["text"])
            for one in self.index["conversations"]
        ]

    def processed(self, tokenizer: Any, text: str, images: list[Image.Image]) -> list[int]:
        return list(self._known("processed", processed_key(text, images)))


class Recorder(Reference):
    """Does as `reference` does, and keeps what it was asked."""

    def __init__(
        self, reference: Reference, seed: int, arrays: dict[str, np.ndarray] | None = None
    ) -> None:
        self.reference, self.seed = reference, seed
        self.arrays = {} if arrays is None else arrays
        for field in (*FIELDS, "refused"):
            setattr(self, field, getattr(reference, field))
        kinds = ("checkpoint", "blocks", "before", "rows", "logits", "named", "misshapen")
        self.index: dict[str, Any] = {
            kind: {} for kind in (*kinds, "processed", "quantized", "prompts")
        }
        self.index["conversations"] = []
        self.others: dict[str, Recorder | None] = {}

    def write(self, folder: Path, dialect: str) -> None:
        self.reference.write(folder, dialect)
        tensors: dict[str, str] = {}
        for file in folder.glob("*.safetensors"):
            tensors |= {name: self._array(array) for name, array in load_file(file).items()}
        texts = {f.name: f.read_text() for f in folder.iterdir() if f.suffix in (".json", ".jinja")}
        texts.pop("model.safetensors.index.json", None)
        self.index["checkpoint"][dialect] = {"texts": texts, "tensors": tensors}

    def block(self, image: Image.Image) -> list[int]:
        tokens = self.reference.block(image)
        self.index["blocks"][digest(image)] = tokens
        return tokens

    def before(self, index: int) -> list[int]:
        tokens = self.index["before"][str(index)] = self.reference.before(index)
        return tokens

    def rows(self, image: Image.Image) -> np.ndarray:
        rows = self.reference.rows(image)
        self.index["rows"][digest(image)] = self._array(rows)
        return rows

    def logits(self, tokens: list[int], images: list[Image.Image], answer: list[int]) -> np.ndarray:
        logits = self.reference.logits(tokens, images, answer)
        rows = self._array(logits[len(tokens) - 1 :])
        self.index["logits"][prompt_key(tokens, images)] = {"answer": answer, "rows": rows}
        return logits

    def named(self, tensor: str) -> str:
        return self.reference.named(tensor)

    def misshapen(self, tensor: str, array: mx.array) -> mx.array:
        return self.reference.misshapen(tensor, array)

    def quantized(self, seed: int, towers: bool) -> Reference | None:
        other = self.reference.quantized(seed, towers)
        made = None if other is None else Recorder(other, seed, self.arrays)
        self.others[str(towers)] = made
        return made

    def own_processor(self, folder: Path) -> "Recording":
        return Recording(self, folder)

    def conversations(self) -> Sequence[Conversation]:
        found = self.reference.conversations()

        def message(m: Mapping[str, Any]) -> dict[str, Any]:
            images = [self._array(np.asarray(image)) for image in m.get("images", ())]
            return {"role": m["role"], "content": m["content"], "images": images}

        self.index["conversations"] = [
            {"messages": [message(m) for m in one.messages], "text": one.text} for one in found
        ]
        return found

    def processed(self, tokenizer: Any, text: str, images: list[Image.Image]) -> list[int]:
        tokens = self.reference.processed(tokenizer, text, images)
        self.index["processed"][processed_key(text, images)] = tokens
        return tokens

    def pixels(self, image: Image.Image, settings: Mapping[str, Any]) -> np.ndarray | None:
        """None: large arrays, of which each is one step of what rows are compared for."""
        return None

    def our_pixels(self, add_on: VisionAddOn, image: Image.Image) -> np.ndarray:
        return self.reference.our_pixels(add_on, image)

    def stored(self) -> dict[str, Any]:
        """All that was asked, as `StoredReference` reads it."""
        tensors = self.index["checkpoint"][self.dialects[0]]["tensors"]
        for name in tensors:
            array = mx.array(self.arrays[tensors[name]])
            if self.named(name) != name:
                self.index["named"][name] = self.named(name)
            self.index["misshapen"][name] = self.misshapen(name, array).shape
        refused = []
        for one in map(Refused._make, map(_whole, self.reference.refused)):
            known = one.error if hasattr(errors, one.error.__name__) else errors.CheckpointError
            refused.append((one.path, _json(one.value), known.__name__, one.told))
        return {
            **self.index,
            "seed": self.seed,
            "fields": {field: _listed(getattr(self, field)) for field in FIELDS},
            "refused": refused,
            "quantized": {key: o and o.stored() for key, o in self.others.items()},
        }

    def save(self, file: Path) -> None:
        index = np.frombuffer(json.dumps(self.stored()).encode(), np.uint8)
        np.savez_compressed(file, index=index, **self.arrays)  # type: ignore[arg-type]

    def _array(self, array: np.ndarray) -> str:
        """Keep an array once; the name that it goes by."""
        array = np.ascontiguousarray(array)
        content = f"{array.dtype} {array.shape}".encode() + array.tobytes()
        name = "a" + hashlib.sha256(content).hexdigest()[:24]
        self.arrays[name] = array
        return name


class Recording:
    """Does as the reference's processor of a folder does, and keeps what it makes."""

    def __init__(self, recorder: Recorder, folder: Path) -> None:
        self.reference, self.prompts = recorder.reference, recorder.index["prompts"]
        self.processor = self.reference.own_processor(folder)
        self.folder, self.own = folder, template_of(folder)

    def apply_chat_template(self, messages: Sequence[Any], **options: Any) -> list[list[int]]:
        """The processor's ids of messages that `Reference.as_read` has not seen yet."""
        [name] = [n for n, text in self.reference.templates.items() if text == self.own]
        read = [dict(self.reference.as_read(name, message)) for message in messages]
        key = conversation_key(self.folder, messages)
        self.prompts[key] = None  # if it is refused
        [made] = self.processor.apply_chat_template(read, **options)
        self.prompts[key] = list(map(int, made))
        return [self.prompts[key]]


class Replaying:
    """What a processor of a folder made of the conversations that were recorded."""

    def __init__(self, reference: StoredReference, folder: Path) -> None:
        self.reference, self.folder = reference, folder

    def apply_chat_template(self, messages: Sequence[Any], **_: Any) -> list[list[int]]:
        """The ids that were recorded. Raises ValueError for what was refused then."""
        made = self.reference._known("prompts", conversation_key(self.folder, messages))
        if made is None:
            raise ValueError("the processor refused this when it was recorded")
        return [made]


def template_of(folder: Path) -> str | None:
    """The chat template that the kit wrote into a folder, if it did."""
    file = folder / "chat_template.jinja"
    return file.read_text(encoding="utf-8") if file.exists() else None


def conversation_key(folder: Path, messages: Sequence[Mapping[str, Any]]) -> str:
    """What tells a conversation, the chat template and the tokenizer of a folder from others."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    adds_bos = tokenizer["post_processor"] is not None
    whole = json.dumps([template_of(folder), adds_bos, list(messages)], default=digest)
    return hashlib.sha256(whole.encode()).hexdigest()


def digest(image: Image.Image) -> str:
    return Photo.of(image).digest


def prompt_key(tokens: Sequence[int], images: Sequence[Image.Image]) -> str:
    whole = json.dumps([list(tokens), [digest(image) for image in images]])
    return hashlib.sha256(whole.encode()).hexdigest()


def processed_key(text: str, images: Sequence[Image.Image]) -> str:
    return json.dumps([text, [digest(image) for image in images]])


def _whole(refused: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(Refused(*refused))


def _json(value: Any) -> Any:
    return {"removed": True} if value is REMOVED else {"value": value}


def _value(stored: dict[str, Any]) -> Any:
    return REMOVED if "removed" in stored else stored["value"]


def _listed(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else value
