"""What is random in the tests: the same in each run, or fresh where a sweep asks for that.

The environment variable SIGHTLINE_SEED asks: all that is random then follows from its number.
"""

import os
import zlib
from functools import cached_property

import hypothesis
from hypothesis.internal.conjecture.providers import (
    AVAILABLE_PROVIDERS,
    Constants,
    HypothesisProvider,
)

SWEEP = os.environ.get("SIGHTLINE_SEED", "")


def seed_of(name: str) -> int:
    """The seed of what goes by this name, from 0 to 2**31 - 1."""
    return zlib.crc32(f"{SWEEP} {name}".encode()) >> 1


class OfNoModule(HypothesisProvider):
    """Hypothesis' own way of drawing, without constants from those of our modules that happen to
    have been imported: which those are depends on the tests that ran before."""

    @cached_property
    def _local_constants(self) -> Constants:
        return Constants()


def load_profile() -> None:
    """The settings of all tests that use hypothesis or schemathesis."""
    AVAILABLE_PROVIDERS["sightline"] = f"{__name__}.{OfNoModule.__name__}"
    common = {"database": None, "deadline": None, "print_blob": True}
    same = {"derandomize": True, "backend": "sightline", "max_examples": 40}
    hypothesis.settings.register_profile("same", **same, **common)
    hypothesis.settings.register_profile("sweep", max_examples=200, **common)
    hypothesis.settings.load_profile("sweep" if SWEEP else "same")
