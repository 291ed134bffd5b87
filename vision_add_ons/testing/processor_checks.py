"""Pixels and prompts against the family's own processor, where a reference brings one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vision_add_ons.errors import RequestError
from vision_add_ons.json_files import read_json_if_there
from vision_add_ons.pixels import read_processor_config
from vision_add_ons.testing.drawn_pictures import drawn_pictures
from vision_add_ons.testing.kit import Kit, NothingToCheck, opened
from vision_add_ons.testing.photo import Photo
from vision_add_ons.testing.prompt_checks import check_spans
from vision_add_ons.testing.reference import REMOVED, Conversation
from vision_add_ons.testing.text_tokenizer import write_text_tokenizer
from vision_add_ons.testing.watching import Seen, Watch, watched

DRAWN = 8
"""Pictures of drawn sizes whose pixels are compared with each of the `processors`."""


def check_pixels(kit: Kit, drawn: int = DRAWN) -> None:
    """Preprocessed pixels are the processor's to the last bit: of the reference's pictures and
    sizes, and of so many drawn sizes."""
    reference = kit.reference
    case = kit.case("pixels")
    noise = [case.photo(*size).image for size in reference.pixel_sizes]
    for settings in reference.processors:
        changes = {f"preprocessor_config.json/{name}": v for name, v in settings.items()}
        folder = kit.changed(changes)
        whole = read_processor_config(folder)
        eyes = kit.look(folder)
        others = drawn_pictures(case, eyes, drawn)
        which = f" with {dict(settings)}" if settings else ""
        for image in [*reference.pictures(), *noise, *others]:
            _compare_pixels(kit, eyes, image, whole, which)


def check_absent_settings(kit: Kit) -> None:
    """What the image processor's file leaves out is as the processor has it, or is refused."""
    case = kit.case("absent settings")
    images = [case.image(), case.photo(301, 203).image]
    for file, nested in (("preprocessor_config", ""), ("processor_config", "image_processor")):
        saved = read_json_if_there(kit.folder / f"{file}.json")
        for name in saved.get(nested, {}) if nested else saved:
            path = f"{file}.json/{nested}.{name}" if nested else f"{file}.json/{name}"
            folder = kit.changed({path: REMOVED})
            whole = read_processor_config(folder)
            eyes, told = opened(kit, folder, f"{name} is not in {file}.json")
            assert eyes is not None or name in told, (
                f"{file}.json without {name}: the error must name it, but says: {told}"
            )
            for image in images if eyes is not None else ():
                _compare_pixels(kit, eyes, image, whole, f" where {file}.json has no {name}")


def _compare_pixels(
    kit: Kit, eyes: Any, image: Image.Image, settings: Mapping[str, Any], which: str
) -> None:
    expected = kit.reference.pixels(image, settings)
    if expected is None:
        raise NothingToCheck("the reference has no `pixels`")
    ours = kit.reference.our_pixels(eyes, image)
    what = f"a picture of {image.size[0]}x{image.size[1]} pixels{which}"
    assert ours.shape == expected.shape, (
        f"{what} becomes an array of {ours.shape}, and by the processor of {expected.shape}; "
        "where a setting is absent, the processor's own default counts, or the checkpoint is "
        "refused"
    )
    assert np.array_equal(ours, expected), (
        f"the pixels of {what} are not the processor's: up to "
        f"{np.abs(ours - expected).max():.2g} off; look at the resampling, the order of "
        "rescaling and normalising, mean and std, and the precision of each step"
    )


class Prompts:
    """The prompts that an engine makes of texts and messages, by a tokenizer that knows words."""

    def __init__(self, kit: Kit, adds_bos: bool = False, template: str | None = None) -> None:
        """`template` is the checkpoint's own chat template, if it is to have one."""
        reference = kit.reference
        self.folder = kit.changed({})
        self.tokenizer = write_text_tokenizer(
            self.folder, reference.special_tokens, adds_bos, reference.control_tokens
        )
        if template is not None:
            (self.folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        self.watch = Watch(only_prompts=True)
        self.engine = kit.open(self.folder, watched(kit.add_on, self.watch))

    def of(self, prompt: Any, images: Any = ()) -> Any:
        """The expanded prompt."""
        try:
            self.engine.generate(prompt, images=images)
        except Seen:
            return self.watch.prompts.pop()
        raise AssertionError("expand_prompt was not asked")


def check_prompts(kit: Kit) -> None:
    """Messages and texts become the prompts that the family's processor makes of them."""
    reference = kit.reference
    conversations = reference.conversations()
    if not conversations and not reference.texts:
        raise NothingToCheck("the reference has neither `conversations` nor `texts`")
    for adds_bos in reference.adds_bos:
        _check_prompts(kit, Prompts(kit, adds_bos), conversations)


def _check_prompts(kit: Kit, prompts: Prompts, conversations: Sequence[Conversation]) -> None:
    reference, case = kit.reference, kit.case("prompts")
    for one in conversations:
        ours = prompts.of(one.messages)
        expected = reference.processed(prompts.tokenizer, one.text, one.images)
        _must_be_alike(prompts, ours.tokens, expected, f"messages that make {one.text!r}")
        seen = [span.picture.size for span in ours.spans]
        assert seen == [image.size for image in one.images], (
            "the pictures do not stand in the prompt in the order of the messages"
        )
        check_spans(prompts.watch.eyes, ours)
    for text, count in reference.texts:
        images = [case.image(i) for i in range(count)]
        ours = prompts.of(text, images)
        expected = reference.processed(prompts.tokenizer, text, images)
        _must_be_alike(prompts, ours.tokens, expected, f"the text {text!r}")


def _must_be_alike(prompts: Prompts, ours: list[int], theirs: list[int], what: str) -> None:
    decode = prompts.tokenizer.decode
    assert ours == theirs, (
        f"{what}: the prompt is {decode(ours)!r}, and the processor's is {decode(theirs)!r}; look "
        "at the chat template, prepare_text and picture_tokens"
    )


def check_texts_mark_nothing(kit: Kit) -> None:
    """A message with a special token of the family's in its text is read as it stands.

    Else a conversation in which somebody writes it could not go on.
    """
    marks = [text for _, text in kit.reference.special_tokens.values()]
    if not marks:
        raise NothingToCheck("the reference has no `special_tokens`")
    prompts = Prompts(kit)
    for mark in marks:
        for plain in (["Look: "], ["Look: ", "I write  or.", "And now?"]):
            texts = [text.replace("  ", f" {mark} ").replace(": ", f": {mark}") for text in plain]
            read = [_read(prompts, turns) for turns in (plain, texts)]
            assert read[1] is not None, (
                f"a message with {mark} in its text is refused: list it in image_marks"
            )
            for other in marks:
                more = read[1].count(other) - (read[0] or "").count(other)
                count = "".join(texts).count(other)
                assert more == count, (
                    f"messages with {mark} in their texts have {other} {count} times, and the "
                    f"prompt has it {more} times: list it in image_marks"
                )


def _read(prompts: Prompts, texts: Sequence[str]) -> str | None:
    """The prompt of questions and answers, special tokens written out; None if it is refused."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    try:
        tokens = prompts.of(messages).tokens
    except RequestError:
        return None
    read: str = prompts.tokenizer.decode(tokens)
    return read


def check_saved_means(kit: Kit) -> None:
    """The image processor's saved mean and std count: pixels and rows follow them."""
    photo: Any = Photo.of(kit.case("saved means").image())
    plain = kit.eyes.encode_image(photo)
    for name, value in kit.reference.means.items():
        eyes = kit.look(kit.changed({f"preprocessor_config.json/{name}": value}))
        changed = np.array(eyes.encode_image(photo))
        assert not np.array_equal(changed, np.array(plain)), (
            f"the saved {name} of preprocessor_config.json does not count: it wins over defaults"
        )
