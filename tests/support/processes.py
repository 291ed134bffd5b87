"""Python in a process of its own, as users have it: without torch, which nothing of ours needs.

Where torch is installed, transformers imports it, and that takes as long as all else together.
"""

import sys

WITHOUT_TORCH = "import sys\nsys.modules['torch'] = None\n"


def python(code: str, *arguments: object) -> list[str]:
    """The command that runs this code with these arguments."""
    return [sys.executable, "-c", WITHOUT_TORCH + code, *map(str, arguments)]


COMMAND = python("import runpy\nrunpy.run_module('engine', run_name='__main__', alter_sys=True)\n")
"""The command `sightline`: `python -m engine`."""
