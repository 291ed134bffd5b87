"""Which prompts are read together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from support.at_once import all_at_once
from support.pixtral_reference import PixtralReference

from engine import GenerationOptions, Request, load
from engine.decoding import reading
from vision_add_ons.testing import written

SHORT = GenerationOptions(max_tokens=3)


def test_prompts_with_pictures_are_read_together(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of about one length, be their pictures new or known; texts beside them apart."""
    reference = PixtralReference(seed)
    written(reference, tmp_path)
    read: list[tuple[int, int]] = []
    together = reading.prefill_together

    def watched(model: Any, prompts: Sequence[Any], *given: Any) -> Any:
        read.append((len(prompts), len(given[-1])))
        return together(model, prompts, *given)

    monkeypatch.setattr(reading, "prefill_together", watched)
    draw = np.random.default_rng(seed)
    pictures = [
        Image.fromarray(draw.integers(0, 255, (40, 40, 3), dtype=np.uint8)) for _ in range(3)
    ]
    assert reference.image_token is not None
    seeing = [
        Request([5 + i, reference.image_token, 9, 11 + i], [picture], SHORT)
        for i, picture in enumerate(pictures)
    ]
    texts = [Request([20 + i, 6, 7, 8], options=SHORT) for i in range(2)]
    with load(tmp_path) as engine:
        alone = [engine.submit(request).result().tokens for request in (*seeing, *texts)]
    with load(tmp_path, parallel=8, cache_bytes=0) as engine:
        for _ in range(2):
            with all_at_once(engine):
                asked = [engine.submit(request) for request in (*seeing, *texts)]
            assert [generation.result().tokens for generation in asked] == alone
    assert sorted(read) == [(2, 0), (2, 0), (3, 3), (3, 3)]
