"""A family as others write them: Pixtral's tower, and around the rows what the tokenizer has.

Each line of a picture's rows begins with a token of its own, which no setting names, and ends with
a line break, of which the tokenizer makes what it will.
"""

from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from tokenizers import Tokenizer

from support.pixtral_reference import END, IMG, PixtralReference
from vision_add_ons.base import Picture
from vision_add_ons.errors import BrokenTokenizer
from vision_add_ons.pixtral.add_on import PixtralAddOn
from vision_add_ons.testing import LINE_BREAKS, Conversation

MOST_LINES = 6
LINES = {i: 83 + i for i in range(1, MOST_LINES + 1)}


class TiledAddOn(PixtralAddOn):
    """`<row_1>` and the first line's rows, a line break, and so on; then `[IMG_END]`."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        super().__init__(folder, config)
        self.words = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.line_ids = [self.token(f"<row_{i}>") for i in LINES]
        self.line_end = self.encoded("\n")
        self.block_end = self.encoded("\n\n")

    def token(self, text: str) -> int:
        found = self.words.token_to_id(text)
        if found is None:
            raise BrokenTokenizer(f"tokenizer.json has no token {text!r}")
        return int(found)

    def encoded(self, text: str) -> list[int]:
        """As it is read between the tokens of a picture."""
        whole = self.words.encode(f"[IMG]{text}[IMG]", add_special_tokens=False)
        return list(whole.ids[1:-1])

    def picture_tokens(self, picture: Picture) -> list[int]:
        lines, columns = self.grid(picture.size)
        block = []
        for i in range(lines):
            block += [self.line_ids[i], *[self.placeholder_id] * columns]
            block += self.block_end if i == lines - 1 else self.line_end
        return [*block, self.end_id]


class TiledReference(PixtralReference):
    name = "tiled"
    special_tokens: ClassVar[dict[str, tuple[int, str]]] = {
        **PixtralReference.special_tokens,
        **{f"line_{i}": (token, f"<row_{i}>") for i, token in LINES.items()},
    }
    texts = (("Look: [IMG]\nNow say what it is,\n\n[IMG]\n!", 2),)

    def block(self, image: Image.Image) -> list[int]:
        lines, columns = self.grid(image)
        block = []
        for i in range(1, lines + 1):
            block += [LINES[i], *[IMG] * columns, LINE_BREAKS["\n\n" if i == lines else "\n"]]
        return [*block, END]

    def conversations(self) -> list[Conversation]:
        return super().conversations()[:2]

    def processed(self, tokenizer: Any, text: str, images: list[Image.Image]) -> list[int]:
        before, *behind = text.split("[IMG]")
        for image, rest in zip(images, behind, strict=True):
            lines, columns = self.grid(image)
            rows = [f"<row_{i}>{'[IMG]' * columns}" for i in range(1, lines + 1)]
            before += "\n".join(rows) + "\n\n[IMG_END]" + rest
        return list(tokenizer.encode(before, add_special_tokens=False))
