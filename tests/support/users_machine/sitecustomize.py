"""For processes with this folder in their PYTHONPATH: packages that no user has."""

import sys

for package in ("torch", "mistral_common"):
    sys.modules[package] = None  # type: ignore[assignment]
