"""An add-on holds weights and nothing else: it serves any number of requests, from any thread."""

import threading
from typing import Any

import mlx.core as mx

from vision_add_ons.base import VisionAddOn
from vision_add_ons.testing.kit import Answered, Kit, ask
from vision_add_ons.testing.photo import Photo
from vision_add_ons.testing.prompt_checks import expand
from vision_add_ons.testing.reference import Part
from vision_add_ons.testing.state import changes, state_of
from vision_add_ons.testing.vocabulary import BOS


def check_no_state_is_kept(kit: Kit) -> None:
    """No attribute is another after a picture than before: not the add-on's, nor its class's."""
    case = kit.case("state")
    first, second = case.image(), case.image(1)
    _use(kit, [BOS, first, *case.words(3)])  # what is made at the first use may stay
    before = state_of(kit.eyes)
    _use(kit, [BOS, *case.words(5), second, *case.words(2), case.image(), *case.words(3)])
    _must_be_equal(before, state_of(kit.eyes), kit.add_on)

    engine, watch = kit.watched
    seen = len(watch.merges)
    for which in (0, 1, 0):
        ask(engine, [BOS, case.image(which), *case.words(4)], kit.reference)
    _, second_state, third_state = (merge.state for merge in watch.merges[seen:])
    _must_be_equal(second_state, third_state, kit.add_on)


def _use(kit: Kit, prompt: list[Part]) -> None:
    eyes = kit.eyes
    expanded = expand(kit, prompt)
    for span in expanded.spans:
        eyes.row_count(span.picture)
        mx.eval(eyes.encode_image(span.picture))


def _must_be_equal(before: Any, after: Any, add_on: type[VisionAddOn]) -> None:
    changed = changes(before, after)
    assert not changed, (
        f"{add_on.__name__} keeps something of a request: {', '.join(changed[:3])} changed while "
        "it was used. An add-on serves many requests at once; what one of them needs rides on its "
        "spans or its cache views"
    )


def check_two_engines_on_two_threads(kit: Kit) -> None:
    """Two engines asked by two threads at once, each thread both engines, of other pictures."""
    case = kit.case("two engines, two threads")
    engines = [kit.open(kit.folder), kit.open(kit.folder)]
    prompts: list[list[list[Part]]] = [
        [[BOS, case.image(), *case.words(2), case.image(i), *case.words(3)] for i in range(2)]
        for _ in engines
    ]
    answers: list[list[Answered]] = [[], []]
    errors: list[BaseException] = []
    together = threading.Barrier(len(engines))

    def talk(own: int) -> None:
        try:
            for i, prompt in enumerate(prompts[own]):
                together.wait(60)
                answers[own].append(ask(engines[(own + i) % 2], prompt, kit.reference))
        except BaseException as error:
            together.abort()
            errors.append(error)

    threads = [threading.Thread(target=talk, args=(own,)) for own in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    broken = [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
    if broken:
        raise AssertionError(
            f"with two engines on two threads a request fails: {broken[0]!r}; look for what "
            "instances share: globals, class attributes, arrays of another thread"
        ) from broken[0]
    for own, asked in enumerate(prompts):
        for prompt, answered in zip(asked, answers[own], strict=True):
            try:
                case.hold(prompt, answered, kit.reference)
            except AssertionError as error:
                raise AssertionError(
                    "with two engines on two threads an answer is another one: look for what "
                    f"instances share, such as globals and class attributes ({error})"
                ) from error


def check_a_picture_of_another_thread(kit: Kit) -> None:
    """Counts and places are asked on one thread while rows are made on another."""
    case = kit.case("counts of another thread")
    photos = Photo.of(case.image()), Photo.of(case.image(1))
    counts = [kit.eyes.row_count(photo) for photo in photos]
    for own, other in ((0, 1), (1, 0)):
        found: list[int] = []
        kit.eyes.row_count(photos[own])
        thread = threading.Thread(target=_count, args=(kit.eyes, photos[other], found))
        thread.start()
        thread.join()
        assert found == [counts[other]] * 2, "row_count or picture_tokens differ on another thread"
        rows = kit.eyes.encode_image(photos[own])
        assert rows.shape[0] == counts[own], (
            "another picture was counted meanwhile, and the rows follow it: nothing may be kept "
            "between row_count and encode_image"
        )


def _count(eyes: VisionAddOn, photo: Photo, found: list[int]) -> None:
    found.append(eyes.row_count(photo))
    found.append(eyes.picture_tokens(photo).count(eyes.placeholder_id))
