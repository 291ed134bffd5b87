"""Prompts of drawn conversations against those of the family's own processor."""

import random
from collections.abc import Iterator, Sequence
from itertools import islice

from PIL import Image

from vision_add_ons.base import ExpandedPrompt
from vision_add_ons.errors import RequestError
from vision_add_ons.testing.drawn_conversations import Message, draw, images_of, texts_of
from vision_add_ons.testing.kit import Kit, NothingToCheck
from vision_add_ons.testing.processor_checks import Prompts
from vision_add_ons.testing.prompt_checks import check_spans
from vision_add_ons.testing.stored import NotRecorded

COMPARED = 40
"""Conversations of each template whose ids must be the processor's."""
MOST_DRAWN = 4
"""Times as many are drawn at most for each tokenizer: those that are refused compare nothing."""


def check_conversations(kit: Kit, wanted: int = COMPARED) -> dict[str, tuple[int, int]]:
    """Drawn conversations become the ids that the family's processor makes of them, so many of each
    template.

    What the engine refuses, for want of a place in the template, the processor refuses or loses.
    Returns, for each of the reference's templates, how many were compared, and how many more were
    drawn that one of the two refused.
    """
    reference = kit.reference
    if not reference.templates:
        raise NothingToCheck("the reference has no `templates`")
    counts = {}
    for name, template in reference.templates.items():
        case = kit.case(f"conversations, {name}")
        compared = refused = 0
        for adds_bos, enough in ((False, wanted // 2), (True, wanted)):
            one = Compared(kit, name, Prompts(kit, adds_bos, template))
            for messages in islice(one.drawn(case.random), MOST_DRAWN * wanted):
                if one.alike(messages):
                    compared += 1
                else:
                    refused += 1
                if compared == enough:
                    break
            if compared < enough:
                break
        assert compared == wanted, (
            f"of {compared + refused} conversations with {name}, {refused} were refused, and only "
            f"{compared} could be compared: {wanted} must be"
        )
        counts[name] = compared, refused
    return counts


class Compared:
    """What is compared for one template, and one tokenizer: the engine's prompts and the
    processor."""

    def __init__(self, kit: Kit, template: str, prompts: Prompts) -> None:
        self.kit, self.template, self.prompts = kit, template, prompts
        self.processor = kit.reference.own_processor(prompts.folder)
        self.marks = kit.look(prompts.folder).image_marks

    def drawn(self, source: random.Random) -> Iterator[list[Message]]:
        """Conversations without end, with the family's own tokens in some texts."""
        reference = self.kit.reference
        texts = [text for _, text in reference.special_tokens.values()]
        special = [t for t in (*texts, *reference.control_tokens) if t not in self.marks]

        def image() -> Image.Image:
            size = source.randint(16, 64), source.randint(16, 64)
            return Image.new("RGB", size, (source.randrange(256), 90, 160))

        return draw(source, image, ["</s>", *special], self.marks)

    def alike(self, messages: Sequence[Message]) -> bool:
        """Whether a conversation was compared; False where it was refused, as it may be."""
        told = f"with {self.template}, {_told(messages)}"
        theirs, complaint = self.asked(messages)
        decode = self.prompts.tokenizer.decode
        ours, error = self.engine_asked(messages)
        if ours is None:
            assert theirs is None or not self.keeps_all(theirs, messages), (
                f"{told} is refused ({error}), and the processor makes of it {decode(theirs)!r}, "
                "where all of it stands"
            )
            return False
        if theirs is None:
            # Most processors take an image token in a text for a picture that is missing.
            written = "".join(text for message in messages for text in texts_of(message))
            assert any(mark in written for mark in self.marks), (
                f"{told} becomes {decode(ours.tokens)!r}, and the processor refuses it: {complaint}"
            )
            return False
        assert ours.tokens == theirs, (
            f"{told}: the prompt is {decode(ours.tokens)!r}, and the processor's is "
            f"{decode(theirs)!r}; {_apart(ours.tokens, theirs)}. Look at place_images, "
            "image_marks, prepare_text and picture_tokens"
        )
        seen = [span.picture.size for span in ours.spans]
        assert seen == [image.size for image in images_of(messages)], (
            f"{told}: the pictures do not stand in the prompt in the order of the messages"
        )
        check_spans(self.prompts.watch.eyes, ours)
        return True

    def engine_asked(self, messages: Sequence[Message]) -> tuple[ExpandedPrompt | None, str]:
        """The engine's prompt of a conversation; None, and what it says, where it refuses it."""
        try:
            return self.prompts.of(messages), ""
        except RequestError as error:
            return None, str(error)

    def asked(self, messages: Sequence[Message]) -> tuple[list[int] | None, str]:
        """The processor's ids of a conversation; None, and what it says, where it refuses it."""
        read = [dict(self.kit.reference.as_read(self.template, message)) for message in messages]
        try:
            made = self.processor.apply_chat_template(
                read, tokenize=True, add_generation_prompt=True
            )
        except NotRecorded:
            raise
        except Exception as error:  # templates and processors raise what they like
            return None, repr(error)
        return [int(token) for token in made[0]], ""

    def keeps_all(self, tokens: Sequence[int], messages: Sequence[Message]) -> bool:
        """Whether each picture's tokens, each message's words and its calls of tools are there.

        Words in the order of the messages, but for the system's: a template may write some of them
        itself behind them all, such as marks around a thought that is left out.
        """
        reference, placeholder = self.kit.reference, self.kit.eyes.placeholder_id
        rows = sum(reference.block(image).count(placeholder) for image in images_of(messages))
        if rows and tokens.count(placeholder) != rows:
            return False
        text = self.prompts.tokenizer.decode(tokens)
        calls = [call for message in messages for call in message.get("tool_calls", ())]
        at = 0
        for message in messages:
            ordered = message["role"] != "system"
            for own in map(str.strip, texts_of(message)):
                found = text.find(own, at if ordered else 0)
                if found < 0:
                    return False
                at = found + len(own) if ordered else at
        return all(call["function"]["name"] in text for call in calls)


def _apart(ours: Sequence[int], theirs: Sequence[int]) -> str:
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    if same is None:
        return f"they have {len(ours)} and {len(theirs)} ids"
    return f"they differ from the id at {same} on: {ours[same]} and {theirs[same]}"


def _told(messages: Sequence[Message]) -> str:
    """A conversation in few words."""
    told = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [part.get("text", part["type"].upper()) for part in content]
        told.append(f"{message['role']}: {content!r}")
    return "; ".join(told)
