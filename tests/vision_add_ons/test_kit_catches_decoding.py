"""The conformance kit catches faults in masks and positions, and decoders changed for text."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

pytest.importorskip("torch")

from support.planted import Planting

from vision_add_ons.base import ExpandedPrompt, ImageSpan, Picture
from vision_add_ons.cache_views import BidirectionalView, Range
from vision_add_ons.gemma3 import Gemma3AddOn
from vision_add_ons.gemma4 import Gemma4AddOn
from vision_add_ons.layer_features import deepstack_views, take_features
from vision_add_ons.minicpmv import MiniCPMV47AddOn
from vision_add_ons.minicpmv.canvas import Canvas
from vision_add_ons.mrope import MRope, Positions, PositionView, PromptPositions, in_runs
from vision_add_ons.paligemma import PaliGemmaAddOn
from vision_add_ons.qwen2_vl import Qwen2VLAddOn
from vision_add_ons.qwen3_vl import Qwen3VLAddOn
from vision_add_ons.testing import (
    BOS,
    answer_checks,
    relative_error,
    row_checks,
    seam_checks,
    text_checks,
)
from vision_add_ons.testing.kit import ask

# --- masks ------------------------------------------------------------------------------------


class CausalPictures(Gemma3AddOn):
    def bidirectional_ranges(
        self, tokens: Sequence[int], spans: Sequence[ImageSpan]
    ) -> tuple[Range, ...]:
        return ()


class RangesOneTooLong(Gemma3AddOn):
    def bidirectional_ranges(
        self, tokens: Sequence[int], spans: Sequence[ImageSpan]
    ) -> tuple[Range, ...]:
        return tuple((a, b + 1) for a, b in super().bidirectional_ranges(tokens, spans))


class PicturesSeeEachOther(Gemma3AddOn):
    """All of them, across the text between them."""

    def bidirectional_ranges(
        self, tokens: Sequence[int], spans: Sequence[ImageSpan]
    ) -> tuple[Range, ...]:
        return ((spans[0].start, spans[-1].end),)


class SpansInAllLayers(Gemma4AddOn):
    """As Gemma 3 has it: Gemma 4's spans see themselves in sliding layers alone."""

    def cache_views(
        self, caches: Sequence[Any], prompt: ExpandedPrompt, encode: Any = None
    ) -> list[Any]:
        return [BidirectionalView(cache, prompt.bidirectional) for cache in caches]


class SpansBeyondTheWindow(Gemma4AddOn):
    """As the unified form has it."""

    def cache_views(
        self, caches: Sequence[Any], prompt: ExpandedPrompt, encode: Any = None
    ) -> list[Any]:
        views = super().cache_views(caches, prompt)
        for view in views:
            if isinstance(view, BidirectionalView):
                view.beyond_window = True
        return views


class MarksSeeToo(Gemma4AddOn):
    """Those around the rows."""

    def bidirectional_ranges(
        self, tokens: Sequence[int], spans: Sequence[ImageSpan]
    ) -> tuple[Range, ...]:
        return tuple((span.start, span.end) for span in spans)


class PrefixWithinTheWindow(PaliGemmaAddOn):
    """As Gemma 3 has it: PaliGemma's prompt sees farther than Gemma 2's window."""

    def cache_views(
        self, caches: Sequence[Any], prompt: ExpandedPrompt, encode: Any = None
    ) -> list[Any]:
        return [BidirectionalView(cache, prompt.bidirectional) for cache in caches]


@pytest.mark.parametrize(
    ("faulty", "check"),
    [
        (CausalPictures, answer_checks.check_one_picture),
        (RangesOneTooLong, answer_checks.check_one_picture),
        (PicturesSeeEachOther, answer_checks.check_two_pictures),
        (PrefixWithinTheWindow, answer_checks.check_one_picture),
        (SpansInAllLayers, answer_checks.check_one_picture),
        (SpansBeyondTheWindow, answer_checks.check_one_picture),
        (MarksSeeToo, answer_checks.check_one_picture),
    ],
)
def test_masks(planting: Planting, faulty: Any, check: Any) -> None:
    planting.caught(faulty, check, r"logits are off by .* after the prompt")


# --- positions --------------------------------------------------------------------------------


class CountsOnOneAxis(Qwen2VLAddOn):
    def cache_views(
        self, caches: Sequence[Any], prompt: ExpandedPrompt, encode: Any = None
    ) -> list[Any]:
        return list(caches)


class AxesSwapped(Qwen2VLAddOn):
    def cache_views(
        self, caches: Sequence[Any], prompt: ExpandedPrompt, encode: Any = None
    ) -> list[Any]:
        grids = [(span.start, *self.patches.grid(span.picture.size)[::-1]) for span in prompt.spans]
        positions = PromptPositions(len(prompt.tokens), grids)
        return [PositionView(cache, positions) for cache in caches]


class WrongDelta(Qwen2VLAddOn):
    """The prompt is right, and what follows it stands one too far."""

    def cache_views(
        self, caches: Sequence[Any], prompt: ExpandedPrompt, encode: Any = None
    ) -> list[Any]:
        views = super().cache_views(caches, prompt)
        views[0].prompt.delta += 1  # all of them share it
        return views


@pytest.mark.parametrize(
    ("faulty", "saying"),
    [
        (CountsOnOneAxis, r"logits are off by .* after the prompt"),
        (AxesSwapped, r"logits are off by .* after the prompt"),
        (WrongDelta, "the positions of what follows it"),
    ],
)
def test_positions(planting: Planting, faulty: Any, saying: str) -> None:
    planting.caught(faulty, answer_checks.check_one_picture, saying)


class SlicesOnOnePlace(MiniCPMV47AddOn):
    """All of them in the canvas's corner, as if each were the picture."""

    def _canvas(self, size: tuple[int, int]) -> Canvas:
        canvas = super()._canvas(size)
        layout = self.slicing.layout(size)
        if layout.lines:
            cell = self.slicing.rows(layout.slice)
            alone = Canvas(cell, (1, 1), cell).places[:, -cell[0] * cell[1] - 2 :]
            canvas.places[:, -alone.shape[1] :] = alone
        return canvas


class WholeNotStretched(MiniCPMV47AddOn):
    def _canvas(self, size: tuple[int, int]) -> Canvas:
        canvas = super()._canvas(size)
        alone = Canvas(self.slicing.rows(self.slicing.layout(size).whole), (0, 0), (0, 0)).places
        canvas.places[:, : alone.shape[1] - 1] = alone[:, :-1]
        return canvas


@pytest.mark.parametrize("faulty", [SlicesOnOnePlace, WholeNotStretched])
def test_a_canvas(planting: Planting, faulty: Any) -> None:
    saying = r"logits are off by .* after the prompt"
    planting.caught(faulty, answer_checks.check_one_picture, saying)


class PositionsOfThisTurn(Qwen2VLAddOn):
    """Pictures of earlier turns, whose tokens are in the cache, are forgotten."""

    def cache_views(
        self, caches: Sequence[Any], prompt: ExpandedPrompt, encode: Any = None
    ) -> list[Any]:
        spans = tuple(s for s in prompt.spans if s.start >= caches[0].offset)
        return super().cache_views(caches, ExpandedPrompt(prompt.tokens, spans))


def test_a_conversation(planting: Planting) -> None:
    planting.caught(PositionsOfThisTurn, answer_checks.check_a_conversation, "logits are off by")


# --- features of deeper layers ----------------------------------------------------------------


class FeaturesOneLayerLate(Qwen3VLAddOn):
    def prepare_decoder(self, text_model: nn.Module) -> None:
        super().prepare_decoder(text_model)
        take_features(text_model.layers[2:3])

    def cache_views(
        self, caches: Sequence[Any], prompt: ExpandedPrompt, encode: Any = None
    ) -> list[Any]:
        first, *later = Qwen2VLAddOn.cache_views(self, caches, prompt)
        return [first, *deepstack_views(later, prompt.spans, encode, self.tower.out, 2)]


class FeaturesSwapped(Qwen3VLAddOn):
    def encode_image(self, picture: Picture) -> mx.array:
        rows, one, other = mx.split(super().encode_image(picture), 3, axis=1)
        return mx.concatenate([rows, other, one], axis=1)


class EmbeddingsAlone(Qwen3VLAddOn):
    def cache_views(
        self, caches: Sequence[Any], prompt: ExpandedPrompt, encode: Any = None
    ) -> list[Any]:
        return Qwen2VLAddOn.cache_views(self, caches, prompt)


class AxesInRuns(Qwen3VLAddOn):
    def axes(self) -> list[int]:
        return in_runs(self.sections)


@pytest.mark.parametrize(
    "faulty", [FeaturesOneLayerLate, FeaturesSwapped, EmbeddingsAlone, AxesInRuns]
)
def test_deepstack(planting: Planting, faulty: Any) -> None:
    saying = r"logits are off by .* after the prompt"
    planting.caught(faulty, answer_checks.check_one_picture, saying)


# --- inputs of each layer, and scaled ones ------------------------------------------------------


class LayersAreGivenThePicturesId(Gemma4AddOn):
    def prepare_decoder(self, text_model: nn.Module) -> None:
        """Nothing: the placeholder's own input of each layer is looked up."""


class RowsDividedAgain(Gemma4AddOn):
    """As for mlx-lm's decoder, which would scale them."""

    def encode_image(self, picture: Picture) -> mx.array:
        return super().encode_image(picture) / 8


class WordsNotScaled(Gemma4AddOn):
    def embed_tokens(self, text_model: nn.Module, tokens: mx.array) -> mx.array:
        return text_model.model.embed_tokens(tokens)


@pytest.mark.parametrize(
    ("faulty", "check", "saying"),
    [
        (LayersAreGivenThePicturesId, answer_checks.check_one_picture, "logits are off by"),
        (RowsDividedAgain, row_checks.check_rows, "rows of a picture of .* are off by"),
        (RowsDividedAgain, answer_checks.check_one_picture, "logits are off by"),
        (WordsNotScaled, seam_checks.check_text_embeddings, "embed_tokens must give"),
    ],
)
def test_inputs(planting: Planting, faulty: Any, check: Any, saying: str) -> None:
    planting.caught(faulty, check, saying)


# --- text -------------------------------------------------------------------------------------


class DecoderChanged(Gemma3AddOn):
    """By as little as can be."""

    def prepare_decoder(self, text_model: nn.Module) -> None:
        text_model.model.norm.weight = text_model.model.norm.weight * 1.0001


class RememberingRope(MRope):
    """Goes on from the last picture, whoever asks next."""

    def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
        if isinstance(offset, Positions):
            self.last = offset.prompt.delta
        elif hasattr(self, "last"):
            offset = offset + self.last
        return super().__call__(x, offset)


class DecoderRemembers(Qwen2VLAddOn):
    def prepare_decoder(self, text_model: nn.Module) -> None:
        for layer in text_model.layers:
            layer.self_attn.rope = RememberingRope(layer.self_attn.rope, in_runs(self.sections))


@pytest.mark.parametrize(
    ("faulty", "saying"),
    [
        (DecoderChanged, "before any picture, text has other logits"),
        (DecoderRemembers, "after a picture, text has other logits"),
    ],
)
def test_text(planting: Planting, faulty: Any, saying: str) -> None:
    planting.caught(faulty, text_checks.check_text_is_left_alone, saying)


# --- numbers that are none --------------------------------------------------------------------


class RowsOfNaN(Qwen2VLAddOn):
    def encode_image(self, picture: Picture) -> mx.array:
        return super().encode_image(picture) * float("nan")


class OneNumberInfinite(Qwen2VLAddOn):
    def encode_image(self, picture: Picture) -> mx.array:
        rows = super().encode_image(picture)
        rows[0, 0] = float("inf")
        return rows


@pytest.mark.parametrize("faulty", [RowsOfNaN, OneNumberInfinite])
def test_no_numbers_in_rows(planting: Planting, faulty: Any) -> None:
    planting.caught(faulty, row_checks.check_rows, "numbers of ours are NaN or infinite")
    planting.caught(faulty, answer_checks.check_one_picture, "after 0 tokens .* NaN or infinity")


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_no_number_in_any_step_of_an_answer(planting: Planting, step: int, wrong: float) -> None:
    """`max` passes over a NaN that is not the first."""
    kit = planting.kit("qwen2_vl")
    case = kit.case("an answer with a NaN")
    prompt = [BOS, *case.words(5)]
    answered = ask(kit.engine, prompt, kit.reference)
    case.hold(prompt, answered, kit.reference)
    answered.logits[step, 3] = wrong
    with pytest.raises(AssertionError, match=r"numbers of the answer's logits .* are NaN"):
        case.hold(prompt, answered, kit.reference)


def test_a_reference_without_numbers() -> None:
    numbers = np.ones((2, 3))
    assert relative_error(numbers, numbers) == 0
    for wrong in (np.nan, np.inf):
        spoiled = numbers.copy()
        spoiled[1, 2] = wrong
        with pytest.raises(AssertionError, match="1 of 6 numbers of the reference are NaN"):
            relative_error(numbers, spoiled)
        with pytest.raises(AssertionError, match="1 of 6 numbers of ours are NaN"):
            relative_error(spoiled, numbers)
    with pytest.raises(AssertionError, match="zero everywhere"):
        relative_error(numbers, 0 * numbers)
