"""The conformance kit catches faults in what stands around a picture's rows: special tokens that no
setting names, and tokens that the tokenizer makes of a text."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from support.planted import Planting
from support.tiled_reference import TiledAddOn

from vision_add_ons.base import ExpandedPrompt, Picture
from vision_add_ons.testing import answer_checks, processor_checks, row_checks, token_checks
from vision_add_ons.testing.vocabulary import UNK


class LinesFromNought(TiledAddOn):
    """The first line's token for the second, and so on."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        super().__init__(folder, config)
        self.line_ids = [self.line_ids[0], *self.line_ids]


class OneLineBreak(TiledAddOn):
    """In place of two, which are another token."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        super().__init__(folder, config)
        self.block_end = self.line_end


class LineBreaksOfTheKit(TiledAddOn):
    """The ids that one tokenizer has, whatever the checkpoint's is."""

    def encoded(self, text: str) -> list[int]:
        return [3 + len(text)]


class SpansFromTheSecondToken(TiledAddOn):
    def expand_prompt(
        self, tokens: list[int], pictures: Sequence[Picture], positions: Sequence[int] | None = None
    ) -> ExpandedPrompt:
        made = super().expand_prompt(tokens, pictures, positions)
        spans = (replace(s, start=s.start + 1, length=s.length - 1) for s in made.spans)
        return replace(made, spans=tuple(spans))


@pytest.mark.parametrize(
    ("faulty", "check", "saying"),
    [
        (LinesFromNought, row_checks.check_row_counts, "stands in the prompt as"),
        (LinesFromNought, answer_checks.check_one_picture, "logits are off"),
        (LinesFromNought, processor_checks.check_prompts, "look at .* picture_tokens"),
        (OneLineBreak, row_checks.check_row_counts, "stands in the prompt as"),
        (OneLineBreak, processor_checks.check_prompts, "look at .* picture_tokens"),
        (LineBreaksOfTheKit, processor_checks.check_prompts, "look at .* picture_tokens"),
        (SpansFromTheSecondToken, processor_checks.check_prompts, "a span begins where its tokens"),
    ],
)
def test_what_stands_around_rows(planting: Planting, faulty: Any, check: Any, saying: str) -> None:
    planting.caught(faulty, check, saying)


class UnknownForMissing(TiledAddOn):
    """As most tokenizers answer when they are asked for an id."""

    def token(self, text: str) -> int:
        found = self.words.token_to_id(text)
        return UNK if found is None else int(found)


class TokensAsTexts(TiledAddOn):
    """Whatever the tokenizer makes of a token's text."""

    def token(self, text: str) -> int:
        return int(self.words.encode(text, add_special_tokens=False).ids[0])


class TokensOnDemand(TiledAddOn):
    """Looks for a line's token when a picture has such a line."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.is_loading = True
        super().__init__(folder, config)
        self.is_loading = False

    def token(self, text: str) -> int:
        return 0 if self.is_loading else super().token(text)

    def picture_tokens(self, picture: Picture) -> list[int]:
        self.line_ids = [self.token(f"<row_{i + 1}>") for i in range(self.grid(picture.size)[0])]
        return super().picture_tokens(picture)


class MissingUnnamed(TiledAddOn):
    def token(self, text: str) -> int:
        return super().token(text) if self.words.token_to_id(text) else super().token("one")


@pytest.mark.parametrize(
    ("faulty", "saying"),
    [
        (UnknownForMissing, r"<row_1> is not in the tokenizer, .* raise BrokenTokenizer"),
        (TokensAsTexts, r"<row_1> is not in the tokenizer, .* raise BrokenTokenizer"),
        (TokensOnDemand, "refuse the checkpoint when it is loaded"),
        (MissingUnnamed, "<row_1> is not in the tokenizer: the error must name it"),
    ],
)
def test_missing_tokens(planting: Planting, faulty: Any, saying: str) -> None:
    planting.caught(faulty, token_checks.check_missing_tokens, saying)
