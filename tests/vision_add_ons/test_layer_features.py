"""Rows that a decoder takes at its layers: in their places, whatever the chunks are."""

from itertools import pairwise
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from mlx_lm.models.cache import ArraysCache, KVCache, QuantizedKVCache
from mlx_lm.models.llama import Model, ModelArgs

from vision_add_ons.base import ImageSpan, Picture, VisionAddOn
from vision_add_ons.cache_views import BidirectionalView, plain_caches
from vision_add_ons.layer_features import (
    FeatureView,
    deepstack_views,
    row_views,
    take_features,
)
from vision_add_ons.mrope import PositionView, PromptPositions
from vision_add_ons.testing import Photo

HIDDEN = 32
LENGTH = 23


class Layer(nn.Module):
    """Halves what comes in and counts its tokens, as a layer of a decoder would."""

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        if hasattr(cache, "update_and_fetch"):
            cache.update_and_fetch(x[:, None], x[:, None])
        return x / 2


def taking() -> Layer:
    layer = Layer()
    take_features([layer])
    return layer


def rows(count: int, columns: int = HIDDEN) -> mx.array:
    return mx.random.normal((count, columns), key=mx.random.key(count))


@given(st.lists(st.integers(1, LENGTH - 1), max_size=6, unique=True), st.booleans())
def test_rows_are_in_their_places_in_chunks_of_any_size(cuts: list[int], states: bool) -> None:
    x = mx.random.normal((1, LENGTH, HIDDEN), key=mx.random.key(1))
    put, added = {2: rows(5)}, {0: rows(1), 9: rows(7)}
    expected = mx.concatenate([x[0, :2], put[2], x[0, 7:]]) / 2
    for start, own in added.items():
        expected[start : start + len(own)] += own
    cache = ArraysCache(2) if states else KVCache()
    view, layer = FeatureView(cache, 0, put, added), taking()
    parts = [layer(x[:, a:b], None, view) for a, b in pairwise([0, *sorted(cuts), LENGTH])]
    assert mx.array_equal(mx.concatenate(parts, axis=1)[0], expected)


def test_a_later_start() -> None:
    """What the cache holds already counts, for caches that keep states by what is told."""
    x = mx.zeros((1, 4, HIDDEN))
    added = {3: rows(4)}
    full = KVCache()
    full.update_and_fetch(mx.zeros((1, 1, 5, HIDDEN)), mx.zeros((1, 1, 5, HIDDEN)))
    for cache in (full, ArraysCache(2)):
        made = taking()(x, cache=FeatureView(cache, 5, {}, added))
        assert mx.array_equal(made[0], mx.concatenate([added[3][2:], mx.zeros((2, HIDDEN))]))


def test_each_layer_counts_for_itself() -> None:
    """Layers come one after the other, so that the first may be a chunk ahead of the second."""
    added = {0: rows(4)}
    views = [FeatureView(QuantizedKVCache(32, 8), 0, {}, added) for _ in range(2)]
    layers = [taking(), taking()]
    for start in (0, 2):
        for layer, view in zip(layers, views, strict=True):
            made = layer(mx.zeros((1, 2, HIDDEN)), cache=view)
            assert mx.array_equal(made[0], added[0][start : start + 2])


def test_a_view_of_a_view() -> None:
    """Masks and positions come through, the plain cache is behind both, and both are kept when the
    cache is quantized."""
    positions = PromptPositions(LENGTH, [(3, 2, 3)])
    inner = PositionView(KVCache(), positions)
    view = FeatureView(inner, 0, {}, {3: rows(6)})
    assert view.offset.prompt is positions
    assert view.shift == positions.delta != 0
    assert plain_caches([view]) == [inner.cache]
    keys = mx.zeros((1, 1, 8, HIDDEN))
    view.update_and_fetch(keys, keys)
    quantized = view.to_quantized(group_size=32, bits=8)
    assert isinstance(quantized, FeatureView)
    assert quantized.added is view.added
    assert isinstance(quantized.cache, PositionView)
    assert isinstance(plain_caches([quantized])[0], QuantizedKVCache)
    assert quantized.seen == 8
    masked = FeatureView(BidirectionalView(KVCache(), ((0, 4),)), 0, {}, {})
    assert masked.make_mask(4, return_array=True).all()


def small_decoder() -> Any:
    return Model(
        ModelArgs(
            model_type="llama",
            hidden_size=HIDDEN,
            num_hidden_layers=3,
            intermediate_size=48,
            num_attention_heads=2,
            rms_norm_eps=1e-5,
            vocab_size=50,
        )
    )


def test_a_decoder_stays_what_it_is() -> None:
    """Weights keep their names, and what comes with any other cache is unchanged to the bit."""
    model = small_decoder()
    names = [name for name, _ in tree_flatten(model.parameters())]
    tokens = mx.array([[3, 4, 5, 6]])
    before = model(tokens)
    layers = list(model.layers)
    take_features(layers[:2])
    assert [name for name, _ in tree_flatten(model.parameters())] == names
    assert all(a is b for a, b in zip(layers, model.layers, strict=True))
    assert isinstance(layers[0], type(layers[2]))
    for cache in (None, model.make_cache() if hasattr(model, "make_cache") else None):
        assert mx.array_equal(model(tokens, cache=cache), before)
    caches = [KVCache() for _ in layers]
    assert mx.array_equal(model(tokens, cache=caches), before)


@pytest.mark.parametrize("done", [0, 5])
def test_deepstack(done: int) -> None:
    """Each of the first layers has its columns of the images that are not in the cache yet."""
    first, second = Photo(20, 20, seed=1), Photo(20, 20, seed=2)
    spans = [ImageSpan(1, 4, first), ImageSpan(8, 6, second)]
    caches = [KVCache() for _ in range(4)]
    for cache in caches:
        cache.update_and_fetch(mx.zeros((1, 1, done, 4)), mx.zeros((1, 1, done, 4)))
    wide = {first: rows(4, 3 * HIDDEN), second: rows(6, 3 * HIDDEN)}
    views = deepstack_views(caches, spans, wide.__getitem__, HIDDEN, 2)
    assert plain_caches(views) == caches
    assert [isinstance(view, FeatureView) for view in views] == [True, True, False, False]
    for i, view in enumerate(views[:2], 1):
        assert list(view.added) == ([8] if done else [1, 8])
        assert mx.array_equal(view.added[8], wide[second][:, i * HIDDEN : (i + 1) * HIDDEN])
    for cache in caches:
        cache.offset = LENGTH
    assert deepstack_views(caches, spans, wide.__getitem__, HIDDEN, 2) == caches


class WideEyes(VisionAddOn):
    """Rows of so many columns more than `hidden_size`, whatever it says of them."""

    model_types = ("wide",)
    placeholder_id = 0

    def __init__(self, features: int, wide: int) -> None:
        self.features, self._wide = features, wide

    def row_count(self, picture: Picture) -> int:
        return 2

    def encode_image(self, picture: Picture) -> mx.array:
        return rows(2, HIDDEN * (1 + self._wide))


def test_only_columns_that_are_told_of_are_left_out_of_the_embeddings() -> None:
    spans = [ImageSpan(1, 2, Photo(20, 20, seed=1))]
    tokens = mx.array([3, 0, 0, 4])
    eyes = WideEyes(1, 1)
    made = eyes.compute_embeddings(small_decoder(), tokens, spans).input_embeddings
    assert made is not None
    assert mx.array_equal(made[1:3], eyes.encode_image(spans[0].picture)[:, :HIDDEN])
    with pytest.raises(ValueError, match="broadcast"):
        WideEyes(0, 1).compute_embeddings(small_decoder(), tokens, spans)


def test_a_decoder_that_takes_no_embeddings() -> None:
    """Rows that its first layer is given are what their embeddings would have been."""
    model = small_decoder()
    tokens = mx.array([[3, 4, 0, 0, 5, 6]])
    picture = Photo(20, 20, seed=1)
    own = rows(2)
    embeddings = model.model.embed_tokens(tokens)
    embeddings[:, 2:4] = own
    expected = model(tokens, input_embeddings=embeddings, cache=[KVCache() for _ in range(3)])
    take_features(model.layers[:1])
    views = row_views([KVCache() for _ in range(3)], [ImageSpan(2, 2, picture)], {picture: own}.get)
    assert mx.array_equal(model(tokens, cache=views), expected)
