"""What a message is made of in a request: texts, and pictures in every spelling."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from engine.server.turns import Shown
from engine.server.values import Ignored, Strict, Unsupported

PART_TYPES = ("text", "input_text", "output_text", "image_url", "input_image")
"""What a part may be."""


class _Part(Strict):
    cache_control: Ignored = None
    prompt_cache_breakpoint: Ignored = None


class TextPart(_Part):
    type: Literal["text", "input_text", "output_text"]
    text: str
    annotations: Ignored = None
    logprobs: Ignored = None


Detail = Annotated[
    Literal["auto", "high", "low", "original"] | None,
    Field(description='"low" shrinks the longer side to 512 pixels, else the picture stays.'),
]


class ImageURL(Strict):
    url: str = Field(
        min_length=1,
        description="A data URI, or base64. http(s) and file URLs only if the server allows them.",
    )
    detail: Detail = None


class ImagePart(_Part):
    type: Literal["image_url", "input_image"]
    image_url: ImageURL | Annotated[str, Field(min_length=1)]
    detail: Detail = None
    file_id: Unsupported = None

    @property
    def shown(self) -> Shown:
        """The picture, however it is written."""
        if isinstance(self.image_url, str):
            return Shown(self.image_url, self.detail == "low")
        return Shown(self.image_url.url, (self.image_url.detail or self.detail) == "low")


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def as_turn_parts(content: str | Sequence[TextPart | ImagePart] | None) -> list[str | Shown]:
    """A content in any form that it may have."""
    if isinstance(content, str):
        return [content]
    return [part.text if isinstance(part, TextPart) else part.shown for part in content or ()]
