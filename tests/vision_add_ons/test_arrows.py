"""What the room of add-ons imports: neither of the rooms that use it, and torch nowhere."""

import ast
from pathlib import Path

import pytest

import vision_add_ons

ROOM = Path(vision_add_ons.__file__).parent
OTHERS = {"engine", "model_kit", "torch", "tests", "support"}


@pytest.mark.parametrize("file", sorted(ROOM.rglob("*.py")), ids=lambda f: str(f.relative_to(ROOM)))
def test_imports(file: Path) -> None:
    """Anywhere in the file, functions included."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        assert not {name.partition(".")[0] for name in names} & OTHERS, f"{file}: {names}"
