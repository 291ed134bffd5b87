"""Pixels and prompts against the family's own processor, where a reference brings one."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vision_add_ons.errors import RequestError
from vision_add_ons.testing.kit import Kit, NothingToCheck
from vision_add_ons.testing.photo import Photo
from vision_add_ons.testing.prompt_checks import check_spans
from vision_add_ons.testing.reference import Conversation
from vision_add_ons.testing.text_tokenizer import write_text_tokenizer
from vision_add_ons.testing.watching import Seen, Watch, watched


def check_pixels(kit: Kit) -> None:
    """Preprocessed pixels are the processor's to the last bit."""
    reference = kit.reference
    case = kit.case("pixels")
    for settings in reference.processors:
        changes = {f"preprocessor_config.json/{name}": v for name, v in settings.items()}
        eyes = kit.look(kit.changed(changes))
        noise = [case.photo(*size).image for size in reference.pixel_sizes]
        for image in [*reference.pictures(), *noise]:
            expected = reference.pixels(image, settings)
            if expected is None:
                raise NothingToCheck("the reference has no `pixels`")
            ours = reference.our_pixels(eyes, image)
            what = f"a picture of {image.size[0]}x{image.size[1]} pixels"
            if settings:
                what += f" with {dict(settings)}"
            assert ours.shape == expected.shape, (
                f"{what} becomes an array of {ours.shape}, and by the processor of {expected.shape}"
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
        self.folder = kit.changed(reference.with_words)
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
        check_spans(kit, ours)
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
        tokens: list[int] = prompts.of(messages).tokens
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
