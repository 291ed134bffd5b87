"""What stands for pictures in prompts of Idefics3 and SmolVLM, and what stands around them.

Semantics: transformers' `Idefics3Processor` and `SmolVLMProcessor`, which write alike.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

from vision_add_ons.configs import check_fields
from vision_add_ons.errors import BrokenTokenizer
from vision_add_ons.tokenizer_file import named_tokens, token_text

IMAGE = "<image>"
NAMES = {
    "image_token": IMAGE,
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
}
"""By the names under which a tokenizer may have others in their places."""

# A colon, and a space behind it unless an image follows.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
  {{- message['role'] | capitalize -}}
  {%- if message['content'] is string -%}
    {{- ': ' + message['content'] -}}
  {%- else -%}
    {{- ':' if message['content'] and message['content'][0]['type'] == 'image' else ': ' -}}
    {%- for part in message['content'] -%}
      {{- '<image>' if part['type'] == 'image' else part['text'] -}}
    {%- endfor -%}
  {%- endif -%}
  {{- '<end_of_utterance>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}
"""


@dataclass(frozen=True)
class PictureTokens:
    """The ids of which pictures' blocks are made."""

    image: int
    fake: int
    whole: int
    tiles: dict[tuple[int, int], int]
    """By row and column, from 1 on."""
    line_end: list[int]
    last_line_end: list[int]

    @classmethod
    def read(cls, folder: Path, most: int) -> "PictureTokens":
        """Of a checkpoint folder's tokenizer; `most` is the number of rows, or columns, of tiles.

        Raises `BrokenTokenizer` naming the token that tokenizer.json lacks, or
        `UnsupportedCheckpoint`.
        """
        from tokenizers import Tokenizer

        _check_names(folder)
        file = folder / "tokenizer.json"
        try:
            words = Tokenizer.from_file(str(file))
        except Exception as error:  # of no class of its own
            raise BrokenTokenizer(f"{file} cannot be read ({error}); fetch it again") from error

        def known(text: str, otherwise: str = "") -> int:
            token: int | None = words.token_to_id(text)
            if token is None:
                raise BrokenTokenizer(f"{file} has no token {text!r}; fetch it again{otherwise}")
            return token

        def between(breaks: str) -> list[int]:
            """As the tokenizer reads them between a tile's rows and what the next begins with."""
            text = f"{IMAGE}{breaks}{NAMES['fake_image_token']}"
            return list(words.encode(text, add_special_tokens=False).ids[1:-1])

        smaller = f", or give preprocessor_config.json a size of less than {most} x {most} tiles"
        places = product(range(1, most + 1), repeat=2) if most > 1 else ()
        tiles = {(row, col): known(f"<row_{row}_col_{col}>", smaller) for row, col in places}
        image, fake, whole = map(known, NAMES.values())
        return cls(image, fake, whole, tiles, between("\n"), between("\n\n"))

    def block(self, grid: tuple[int, int], rows: int) -> list[int]:
        """A picture's tokens: its tiles in lines, and the whole of it, `rows` image tokens each."""
        lines, columns = grid
        own = [self.image] * rows
        block: list[int] = []
        for line in range(1, lines + 1) if lines * columns > 1 else ():
            for column in range(1, columns + 1):
                block += [self.fake, self.tiles[line, column], *own]
            block += self.line_end if line < lines else self.last_line_end
        return [*block, self.fake, self.whole, *own, self.fake]


def _check_names(folder: Path) -> None:
    """Refuse a tokenizer that has other texts for these tokens: SmolVLM's would be written so."""
    for name, given in named_tokens(folder, NAMES).items():
        told = {name: token_text(given)}
        check_fields(told, "tokenizer_config", **{name: (NAMES[name],)})
