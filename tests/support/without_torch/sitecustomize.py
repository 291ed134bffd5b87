"""A machine without torch, for processes with this folder in their PYTHONPATH."""

import sys

sys.modules["torch"] = None  # type: ignore[assignment]
