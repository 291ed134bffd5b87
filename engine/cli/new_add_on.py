"""`sightline new-add-on`: the skeleton of a package that adds a model family."""

import argparse
import re
from pathlib import Path
from typing import Any

from vision_add_ons.errors import OptionError

TEMPLATES = Path(__file__).parent / "add_on_template"
FILES = {
    "pyproject.toml": "pyproject.toml.template",
    "README.md": "README.md.template",
    "sightline_new_name.py": "add_on.py.template",
    "tests/test_sightline_new_name.py": "test_add_on.py.template",
}
"""What is written, and from which template. The names in both are filled in."""


def add_command(commands: "argparse._SubParsersAction[Any]") -> None:
    about = "write the skeleton of a package that adds a model family"
    parser = commands.add_parser("new-add-on", help=about)
    what = "the family's model_type in config.json; the folder is sightline-NAME"
    parser.add_argument("name", metavar="NAME", help=what)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    folder = write_package(args.name, Path())
    print(f'{folder} is there. Next: cd {folder}; pip install -e ".[test]"; pytest')
    print("Its first failure says what to fill in.")
    return 0


def write_package(name: str, place: Path) -> Path:
    """Write the package of the family `name` into a new folder in `place`; the folder.

    Raises `OptionError` for a name that is no model type or is served already, and where there is
    such a folder.
    """
    from vision_add_ons.registry import registered

    if not re.fullmatch(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*", name):
        raise OptionError(
            f"{name!r} is no name of a model family: give its model_type, of small letters, digits "
            "and _ or - between them, beginning with a letter"
        )
    if name in registered():
        raise OptionError(f"{name!r} is served already, by {registered()[name]}")
    parts = re.split("[_-]", name)
    filled = {
        "NEW_NAME": name,
        "NewName": "".join(part.capitalize() for part in parts),
        "new_name": "_".join(parts),
        "new-name": "-".join(parts),
    }

    def fill(text: str) -> str:
        return re.sub("|".join(filled), lambda match: filled[match[0]], text)

    folder = place / fill("sightline-new-name")
    try:
        folder.mkdir()
    except FileExistsError:
        raise OptionError(f"{folder} is there already; nothing was written") from None
    for target, template in FILES.items():
        file = folder / fill(target)
        file.parent.mkdir(exist_ok=True)
        file.write_text(fill((TEMPLATES / template).read_text(encoding="utf-8")), encoding="utf-8")
    return folder
