"""GLM-4V against transformers, in float32."""

import pytest

pytest.importorskip("torch")

from support.glm4v_reference import Glm4vReference
from support.own_family import OwnFamily

from vision_add_ons.glm4v import Glm4vAddOn


class TestGlm4v(OwnFamily):
    add_on = Glm4vAddOn
    reference = Glm4vReference
