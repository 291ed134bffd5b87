"""References with experts: which of them a token is sent to may be closer than float32 can tell."""

import math
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

if TYPE_CHECKING:
    from vision_add_ons.testing import Reference as Base
else:
    Base = object

CLOSE = 1e-5
"""Logits of two experts that are apart by less are as good as equal: what comes before them is off
by some millionths already."""


class ChoosesExperts(Base):
    """Before a reference whose routers are modules that return logits first, and have a `top_k`."""

    model: Any

    def allowed(self, tokens: list[int], images: list[Image.Image], answer: list[int]) -> float:
        gaps: list[float] = []

        def look(router: Any, _: Any, returned: Any) -> None:
            logits = returned[0] if isinstance(returned, tuple) else returned
            best = logits.double().topk(router.top_k + 1, dim=-1).values
            gaps.append(float((best[..., -2] - best[..., -1]).min()))

        routers = [m for m in self.model.modules() if type(m).__name__.endswith("TopKRouter")]
        assert routers
        hooks = [router.register_forward_hook(look) for router in routers]
        try:
            with torch.no_grad():
                self.logits(tokens, images, answer)
        finally:
            for hook in hooks:
                hook.remove()
        return math.inf if min(gaps) < CLOSE else super().allowed(tokens, images, answer)
