"""Dtypes: what the checkpoint is stored in is what is computed in; nothing is promoted."""

import mlx.core as mx
import numpy as np

from vision_add_ons.testing.comparison import numbers, relative_error
from vision_add_ons.testing.engines import LoadedEngine
from vision_add_ons.testing.folders import tensors_of
from vision_add_ons.testing.kit import Kit, request
from vision_add_ons.testing.photo import Photo
from vision_add_ons.testing.vocabulary import BOS
from vision_add_ons.testing.watching import Watch, watched

NEAR = 0.1
"""How far 8 or 11 bits of mantissa may lead from float32: that it is the same model, no more."""


def check_float32_stays(kit: Kit) -> None:
    """Rows and embeddings of a float32 checkpoint are float32."""
    _check(kit, mx.float32, kit.watched)


def check_halves_stay(kit: Kit, dtype: mx.Dtype) -> None:
    """Rows and embeddings of a checkpoint in `dtype` (bfloat16, float16) are in it, too."""
    half = {
        name: array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array
        for name, array in tensors_of(kit.folder).items()
    }
    folder = kit.changed({}, half)
    case = kit.case(f"{dtype}")
    photo = Photo.of(case.image())
    near = relative_error(
        numbers(kit.look(folder).encode_image(photo)), numbers(kit.eyes.encode_image(photo))
    )
    assert near < NEAR, (
        f"in {_name(dtype)}, rows are {near:.0%} off those in float32: something overflows, or is "
        "rounded too early"
    )
    watch = Watch()
    engine = kit.open(folder, watched(kit.add_on, watch))
    _check(kit, dtype, (engine, watch))


def _check(kit: Kit, dtype: mx.Dtype, pair: tuple[LoadedEngine, Watch]) -> None:
    case = kit.case(f"dtype {dtype}")
    engine, watch = pair
    asked, images = request([BOS, *case.words(3), case.image(), *case.words(4)], kit.reference)
    engine.generate(asked, images=images, options=engine.options_class(max_tokens=1)).result()
    merge = watch.merges[-1]
    for one in merge.rows:
        assert one.dtype == dtype, (
            f"the checkpoint is {_name(dtype)}, but encode_image gives {_name(one.dtype)}: an "
            "array of another dtype takes part (a constant, the pixels), or a cast is missing"
        )
    assert merge.dtypes[0] == merge.dtypes[1], (
        f"input_embeddings are {_name(merge.dtypes[0])}, and the decoder's own "
        f"{_name(merge.dtypes[1])}: cast the rows, not the embeddings"
    )
    finite = merge.embeddings is None or np.isfinite(merge.embeddings).all()
    assert finite, "input_embeddings are not all finite"


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")
