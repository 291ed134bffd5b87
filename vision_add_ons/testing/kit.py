"""What is checked, with what, and how an answer is held against the reference."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vision_add_ons.base import VisionAddOn
from vision_add_ons.errors import CheckpointError, NumericalError
from vision_add_ons.testing.comparison import TOLERANCE, centred, finite, relative_error
from vision_add_ons.testing.engines import Answering, Load, LoadedEngine, tokens_of
from vision_add_ons.testing.folders import changed_folder
from vision_add_ons.testing.photo import Photo
from vision_add_ons.testing.reference import Part, Reference, written
from vision_add_ons.testing.vocabulary import VOCAB, WORDS, word
from vision_add_ons.testing.watching import Watch, watched

ANSWER = 8
"""Greedy tokens that are compared."""

Note = Callable[[str, str, float], None]
"""Told the check, what was compared in it, and the relative error."""


class NothingToCheck(Exception):
    """Raised by a check for which the reference brings nothing; says what it lacks."""


class Kit:
    """One add-on class, its reference, and an engine's `load`; every check takes it.

    Checkpoints go below the folder `place`. All that is random follows from `seed`. `close` ends
    the engines that were opened.
    """

    def __init__(
        self,
        add_on: type[VisionAddOn],
        reference: Reference,
        load: Load,
        place: Path,
        seed: int,
        note: Note = lambda *_: None,
    ) -> None:
        self.add_on, self.reference, self.load = add_on, reference, load
        self.place, self.seed, self.note = place, seed, note
        self._opened: list[LoadedEngine] = []
        self._folders = 0

    @cached_property
    def folder(self) -> Path:
        """The checkpoint as the reference's first dialect writes it. Not to be changed."""
        return written(self.reference, self.place / "plain")

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its config.json. Not to be changed."""
        config: dict[str, Any] = json.loads((self.folder / "config.json").read_text())
        return config

    @cached_property
    def engine(self) -> LoadedEngine:
        """An engine that serves it, shared by the checks."""
        return self.open(self.folder)

    @cached_property
    def eyes(self) -> VisionAddOn:
        """The add-on alone, loaded from it, shared by the checks: of this thread."""
        return self.look(self.folder)

    def new_folder(self, name: str) -> Path:
        """A path for a checkpoint, below `place`, that is not there yet."""
        self._folders += 1
        return self.place / f"{self._folders}-{name.replace(' ', '-')}"

    def changed(self, changes: Mapping[str, Any], tensors: Mapping[str, Any] | None = None) -> Path:
        """The checkpoint with other values in its JSON files (see `Refused.path`), or with other
        weights; what is not changed is linked."""
        return changed_folder(self.folder, self.new_folder("changed"), changes, tensors)

    def open(
        self, folder: Path, add_on: type[VisionAddOn] | None = None, parallel: int = 1
    ) -> LoadedEngine:
        """Load an engine; it is closed with the others. Raises what loading raises."""
        engine = self.load(folder, add_on=add_on or self.add_on, parallel=parallel)
        self._opened.append(engine)
        return engine

    def look(self, folder: Path) -> VisionAddOn:
        """The add-on alone, on this thread. Raises what its class raises."""
        return self.add_on(folder, json.loads((folder / "config.json").read_text()))

    def case(self, name: str) -> "Case":
        """What one check draws at random."""
        return Case(self, name)

    @cached_property
    def watched(self) -> tuple[LoadedEngine, Watch]:
        """An engine whose add-on is watched, shared by the checks, and what was seen."""
        watch = Watch()
        return self.open(self.folder, watched(self.add_on, watch)), watch

    def serving(self, add_on: type[VisionAddOn]) -> "Kit":
        """The same checkpoint and reference, served by another class."""
        place = self.new_folder(add_on.__name__)
        kit = Kit(add_on, self.reference, self.load, place, self.seed, self.note)
        kit.folder = self.folder
        return kit

    def close(self) -> None:
        for engine in self._opened:
            engine.close()
        self._opened.clear()


class Case:
    """One check's random words and pictures, the same for one seed and one name."""

    def __init__(self, kit: Kit, name: str) -> None:
        self.kit, self.name = kit, name
        self.random = random.Random(f"{kit.seed} {name}")

    def words(self, count: int) -> list[Part]:
        return [self.random.choice(WORDS) for _ in range(count)]

    def image(self, which: int = 0) -> Image.Image:
        """A picture of the reference's sizes, the further ones after the two."""
        sizes = (*self.kit.reference.sizes, *self.kit.reference.more_sizes)
        return self.photo(*sizes[which]).image

    def photo(self, width: int, height: int) -> Photo:
        return Photo(width, height, self.random.randrange(2**31))

    def note(self, what: str, error: float) -> None:
        print(f"{self.name}, {what}: {error:.1e}")
        self.kit.note(self.name, what, error)

    def compare(
        self,
        prompt: Sequence[Part],
        engine: LoadedEngine | None = None,
        reference: Reference | None = None,
        **options: Any,
    ) -> tuple[list[int], Any]:
        """Ask the engine, hold every step against the reference; the answer and its figures.

        The kit's own engine and reference if none is given. Raises AssertionError.
        """
        reference = reference or self.kit.reference
        answered = ask(engine or self.kit.engine, prompt, reference, **options)
        self.hold(prompt, answered, reference)
        return answered.tokens, answered.end

    def hold(self, prompt: Sequence[Part], answered: "Answered", reference: Reference) -> None:
        """Hold every step of an answer against the reference. Raises AssertionError."""
        tokens, images = reference.expanded(prompt)
        answer, ours, ran = answered.tokens, answered.logits, answered.end.prompt_tokens
        assert ran == len(tokens), (
            f"the engine ran a prompt of {ran} tokens where the reference has {len(tokens)}: look "
            "at picture_tokens and expand_prompt"
        )
        theirs = centred(reference.logits(tokens, images, answer[:-1])[len(tokens) - 1 :])
        finite(f"the reference's logits ({self.name})", theirs)
        finite(f"the answer's logits ({self.name})", ours)
        errors = [relative_error(a, b) for a, b in zip(ours, theirs, strict=False)]
        self.note("first", errors[0])
        self.note(f"worst of {ANSWER}", max(errors))
        allowed = TOLERANCE
        if max(errors) > TOLERANCE:
            allowed = reference.allowed(tokens, images, answer[:-1])
        if allowed > TOLERANCE:
            self.note("allowed, where float32 ends", allowed)
        assert max(errors) <= allowed, _apart(self.name, errors, allowed)
        for token, row in zip(answer, theirs, strict=False):
            # The same greedy token, unless two are as good as equal.
            assert row[token] >= row.max() - allowed * np.linalg.norm(row), (
                f"{self.name}: the engine answers {token} where the reference has "
                f"{int(row.argmax())}"
            )
        assert len(theirs) == len(ours), (
            f"{self.name}: the reference knows {len(theirs)} of {len(ours)} steps of this answer"
        )


class Answered(NamedTuple):
    """A greedy answer: its tokens, its centred logits [ANSWER, VOCAB], and its figures."""

    tokens: list[int]
    logits: np.ndarray
    end: Any


def _apart(name: str, errors: list[float], allowed: float) -> str:
    if errors[0] > TOLERANCE:
        where = (
            "look at embed_tokens (check_text_embeddings), the rows (check_rows), their places, "
            "and the mask and positions of tokens"
        )
    else:
        where = "the prompt is right, so look at the positions of what follows it (cache_views)"
    return (
        f"{name}: logits are off by {errors[0]:.1e} after the prompt and up to {max(errors):.1e} "
        f"in the answer, where {allowed:.0e} is allowed; {where}"
    )


def ask(
    engine: LoadedEngine, prompt: Sequence[Part], reference: Reference, **options: Any
) -> Answered:
    """Ask an engine for `ANSWER` greedy tokens."""
    return answered(begin(engine, prompt, reference, **options))


def begin(
    engine: LoadedEngine, prompt: Sequence[Part], reference: Reference, **options: Any
) -> Answering:
    """Ask, and wait for nothing."""
    wanted = replace(engine.options_class(), max_tokens=ANSWER, top_logprobs=VOCAB, **options)
    asked, images = request(prompt, reference)
    return engine.generate(asked, images=images, options=wanted)


def answered(generation: Answering) -> Answered:
    """The answer, once all of it is there."""
    deltas = tokens_of(generation)
    try:
        end = generation.result()
    except NumericalError as error:
        raise AssertionError(
            f"after {len(deltas)} tokens of the answer, {error}; the kit's own weights are "
            "small: look at the rows (check_rows), and at masks by which a token sees nothing"
        ) from error
    logprobs = np.empty((len(deltas), VOCAB), np.float32)
    for row, delta in zip(logprobs, deltas, strict=True):
        assert len(delta.top_logprobs) == VOCAB, (
            f"the decoder knows {len(delta.top_logprobs)} token ids; the reference's vocab_size "
            f"must be {VOCAB}"
        )
        for token, logprob in delta.top_logprobs:
            row[token] = logprob
    assert len(deltas) == ANSWER, (
        f"the answer ended after {len(deltas)} tokens; the head's rows outside of WORDS must be "
        "zero or small (see random_weights)"
    )
    return Answered([delta.token for delta in deltas], centred(logprobs), end)


def request(prompt: Sequence[Part], reference: Reference) -> tuple[list[Any], list[Image.Image]]:
    """What to ask an engine: token ids and pictures, or messages where no token marks a picture."""
    images = [part for part in prompt if not isinstance(part, int)]
    if reference.image_token is not None or not images:
        mark = reference.image_token or 0
        return [part if isinstance(part, int) else mark for part in prompt], images
    messages: list[dict[str, Any]] = [{"role": "user", "content": "", "images": []}]
    for part in prompt:
        last = messages[-1]
        if isinstance(part, int):
            last["content"] += f" {word(part)}"
        elif last["content"]:
            messages.append({"role": "user", "content": "", "images": [part]})
        else:
            last["images"].append(part)
    return messages, []


def opened(kit: Kit, folder: Path, what: str) -> tuple[VisionAddOn | None, str]:
    """The add-on of a changed checkpoint; or None, and what the error said that refused it.

    Raises AssertionError if that is no error of the project's own, telling `what` was changed.
    """
    try:
        return kit.look(folder), ""
    except CheckpointError as error:
        return None, str(error)
    except Exception as error:
        raise AssertionError(
            f"{what}: a CheckpointError that names it must refuse the checkpoint, not {error!r}; "
            "check_fields and positive of vision_add_ons.configs raise it for fields, load_module "
            "and refuse_others of vision_add_ons.weights for tensors"
        ) from error
