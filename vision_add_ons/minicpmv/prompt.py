"""What stands for pictures in prompts of MiniCPM-V, and what stands around them.

Semantics: transformers' `MiniCPMV4_6Processor`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vision_add_ons.configs import check_fields
from vision_add_ons.errors import BrokenTokenizer, ImageCountError
from vision_add_ons.json_files import read_json_if_there
from vision_add_ons.tokenizer_file import named_tokens, token_ids, token_text

TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "image_start_token": "<image>",
    "image_end_token": "</image>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
}
"""By the names under which a tokenizer may have others in their places."""
MOST = 1000
"""Pictures of a prompt that are numbered."""


@dataclass(frozen=True)
class PictureTokens:
    """The ids of which pictures' blocks are made."""

    marks: tuple[str, str]
    """The texts that stand for a picture and for a video."""
    image: int
    video: int
    start: int
    end: int
    slice_start: int
    slice_end: int
    line_end: list[int]
    numbers: list[list[int]]
    """What goes before each picture of a prompt, where they are numbered."""

    @classmethod
    def read(cls, folder: Path) -> "PictureTokens":
        """Of a checkpoint folder's tokenizer.

        Raises `BrokenTokenizer` naming the token that tokenizer.json lacks.
        """
        from tokenizers import Tokenizer

        texts = [_text(name, given) for name, given in named_tokens(folder, TOKENS).items()]
        file = folder / "tokenizer.json"
        try:
            words = Tokenizer.from_file(str(file))
        except Exception as error:  # of no class of its own
            raise BrokenTokenizer(f"{file} cannot be read ({error}); fetch it again") from error
        ids = token_ids(folder, texts, hint="fetch it again")
        image, video, start, end, slice_start, slice_end, *number = ids

        def encoded(text: str) -> list[int]:
            return list(words.encode(text, add_special_tokens=False).ids)

        before, behind = texts[-2:]
        told = iter(encoded("".join(f"{before}{i}{behind}" for i in range(MOST))))
        # Each ends with the same token.
        numbers = [[*iter(told.__next__, number[1]), number[1]] for _ in range(MOST)]
        line_end = encoded(f"{texts[5]}\n{texts[4]}")[1:-1]
        marks = texts[0], texts[1]
        return cls(marks, image, video, start, end, slice_start, slice_end, line_end, numbers)

    def block(self, whole: int, lines: int, columns: int, each: int) -> list[int]:
        """A picture's tokens: `whole` image tokens of all of it, and `each` of every slice."""
        one = [self.slice_start, *[self.image] * each, self.slice_end]
        block = [self.start, *[self.image] * whole, self.end]
        for line in range(lines):
            block += (self.line_end if line else []) + one * columns
        return block

    def number(self, index: int) -> list[int]:
        """What goes before the picture that has so many before it. Raises `ImageCountError`."""
        if index >= len(self.numbers):
            raise ImageCountError(
                f"a prompt with more than {len(self.numbers)} pictures is not supported; leave "
                "some away"
            )
        return self.numbers[index]


def check_numbering(folder: Path, numbered: bool) -> None:
    """Refuse a processor that numbers pictures otherwise than its image processor says."""
    told = read_json_if_there(folder / "processor_config.json").get("use_image_id")
    check_fields({"use_image_id": told}, "processor_config", use_image_id=(None, numbered))


def _text(name: str, given: Any) -> str:
    text = token_text(given)
    if not isinstance(text, str):
        raise BrokenTokenizer(f"tokenizer_config.json's {name} must be a text, not {text!r}")
    return text
