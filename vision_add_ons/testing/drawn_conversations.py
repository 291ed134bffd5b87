"""Conversations drawn at random, in all the forms in which applications write them."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

Message = Mapping[str, Any]
"""A `role`, a `content` that is a text or a list of parts, and perhaps calls of tools. A part is
`{"type": "text", "text": ...}` or `{"type": "image", "image": ...}`."""

TEXTS = (
    "What is this?",
    " Two  spaces,   three, and more at the end    ",
    "\n\nLines\n\n\n  and\t\ttabs\n",
    "  ",
    "\n",
    "",
    "naïve Größe, œuvre, Ærø",
    "e\u0301 a\u0308 n\u0303 combined",
    "日本語の文。 한국어, 中文",
    "שלום עולם, مرحبا بالعالم",
    "👩‍👩‍👧‍👦 🇳🇵 🏽 emoji ",
    "<b>&amp;</b> {{ x }} {% if y %} \\n 'quoted' \"twice\"",
    "12,345.67 = 10**4 + ...",
    "</think> <think>",
)
CONTENTS = ("t", "it", "ti", "i", "tit", "iti", "ii", "tt", "titi", "iit", "tiit", "s", "ttit")
"""The parts of a question: `t` a text, `i` a picture, `s` a text that is no part."""
CALL = {"id": "a1b2c3d4e", "type": "function"}
"""The id is one that every template takes."""


def draw(
    source: random.Random,
    image: Callable[[], Image.Image],
    special: Sequence[str],
    marks: Sequence[str],
) -> Iterator[list[Message]]:
    """Conversations without end; the form of the last question is each of `CONTENTS` in turn.

    `image` makes a picture. Some texts hold one of the texts `special`, and where there are no
    pictures, one of `marks`: with pictures, no processor could tell them apart.
    """
    count = 0
    while True:
        form = CONTENTS[count % len(CONTENTS)]
        count += 1
        pictured = "i" in form or source.random() < 0.6
        yield _Drawing(source, image, [*special, *(() if pictured else marks)], pictured).all(form)


class _Drawing:
    """One conversation in the making."""

    def __init__(
        self,
        source: random.Random,
        image: Callable[[], Image.Image],
        special: Sequence[str],
        pictured: bool,
    ) -> None:
        self.source, self.image, self.special, self.pictured = source, image, special, pictured

    def all(self, form: str) -> list[Message]:
        source = self.source
        messages: list[Message] = []
        if source.random() < 0.5:
            messages.append(self.message("system", self.plain(0.12)))
        for _ in range(source.choice((0, 0, 1, 1, 2))):
            messages.append(self.message("user", source.choice(CONTENTS)))
            if source.random() < 0.2:
                messages += self.called()
            if source.random() < 0.9:
                messages.append(self.message("assistant", self.plain(0.1)))
        messages.append(self.message("user", form))
        if source.random() < 0.1:
            messages += self.called()
        return messages

    def plain(self, pictured: float) -> str:
        """The form of a message that seldom has a picture."""
        if self.pictured and self.source.random() < pictured:
            return self.source.choice(("it", "ti"))
        return self.source.choice(("s", "s", "t", "tt"))

    def called(self) -> list[Message]:
        """A call of a tool, and what it answered."""
        call = {**CALL, "function": {"name": "look_up", "arguments": {"word": "tést"}}}
        asked = {"role": "assistant", "content": self.text(), "tool_calls": [call]}
        answered = self.message("tool", self.plain(0.2))
        return [asked, {**answered, "tool_call_id": CALL["id"], "name": "look_up"}]

    def message(self, role: str, form: str) -> dict[str, Any]:
        if not self.pictured:
            form = form.replace("i", "t")
        return {"role": role, "content": self.text() if form == "s" else list(map(self.part, form))}

    def part(self, kind: str) -> dict[str, Any]:
        if kind == "i":
            return {"type": "image", "image": self.image()}
        return {"type": "text", "text": self.text()}

    def text(self) -> str:
        text = self.source.choice(TEXTS)
        if self.special and self.source.random() < 0.25:
            at = self.source.randint(0, len(text))
            text = text[:at] + self.source.choice(self.special) + text[at:]
        return text


def texts_of(message: Message) -> list[str]:
    """The texts of a message, in order."""
    content = message["content"]
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if part["type"] == "text"]


def images_of(messages: Sequence[Message]) -> list[Image.Image]:
    """The pictures of messages, in order."""
    lists = [m["content"] for m in messages if not isinstance(m["content"], str)]
    return [part["image"] for parts in lists for part in parts if part["type"] == "image"]


def as_text(message: Message) -> Message:
    """A message for a template that reads a text: its texts joined, unless it has pictures."""
    if images_of([message]):
        return message
    return {**message, "content": "".join(texts_of(message))}


def as_parts(message: Message) -> Message:
    """A message for a template that reads parts alone."""
    if not isinstance(message["content"], str):
        return message
    return {**message, "content": [{"type": "text", "text": message["content"]}]}
