"""How many lines each model family takes: `python -m scripts.family_lines`.

Counted are all lines of a family's own files, comments and blank ones too; what it builds on beside
the interface is named. The example package is counted with those that come along.
"""

import ast
from pathlib import Path

import vision_add_ons
from vision_add_ons.registry import BUILT_IN

ROOM = Path(vision_add_ons.__file__).parent
EXAMPLE = ROOM.parent / "examples" / "sightline-llava"
EVERYBODYS = {"base", "configs", "errors", "json_files", "mlx_vlm_modules", "pixels", "weights"}


def family_files(target: str) -> list[Path]:
    """The files of the family whose add-on is `target`, as the registry names it."""
    path = ROOM / target.partition(":")[0].rpartition(".")[2]
    return sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def count(files: list[Path]) -> int:
    """Lines of all of them."""
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def builds_on(files: list[Path], family: str) -> list[str]:
    """The other families' and shared modules that these files import."""
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(ROOM.name + "."):
                found.add(str(node.module).split(".")[1])
    return sorted(found - EVERYBODYS - {family})


def main() -> None:
    """Print a line for each family, the shortest first."""
    families = {file.stem: [file] for file in EXAMPLE.glob("*.py")}
    for target in BUILT_IN.values():
        families[target.partition(":")[0].rpartition(".")[2]] = family_files(target)
    for family, files in sorted(families.items(), key=lambda item: count(item[1])):
        name, many = (
            f"{len(files)} file{'s' * (len(files) > 1)}",
            ", ".join(builds_on(files, family)),
        )
        print(f"{count(files):4} lines, {name:8} {family:20} {many}".rstrip())


if __name__ == "__main__":
    main()
