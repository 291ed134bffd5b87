"""Every module has a test file of its name, or CONTRIBUTING's table says where it is tested."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("engine", "model_kit", "vision_add_ons")
MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for room in ROOMS
    for path in (ROOT / room).rglob("*.py")
    if path.name != "__init__.py" and "template" not in path.parent.name
)


def rows() -> list[tuple[list[str], list[str]]]:
    """The table's rows: patterns of modules, and test files."""
    _, section = (ROOT / "CONTRIBUTING.md").read_text().split("## Where the tests are")
    lines = [line for line in section.split("\n## ")[0].splitlines() if line.startswith("| `")]
    columns = [line.strip("|").split("|") for line in lines]
    return [(re.findall("`(.+?)`", a), re.findall("`(.+?)`", b)) for a, b in columns]


def own_test(module: str) -> Path:
    """Where a module's test is, if it has one of its own: engine/cli/chat.py, test_cli_chat.py."""
    *rooms, name = Path(module).with_suffix("").parts
    if rooms == ["engine", "server"]:
        return ROOT / "tests" / "server" / f"test_{name}.py"
    return ROOT / "tests" / rooms[0] / f"{'_'.join(('test', *rooms[1:], name))}.py"


def test_every_module_has_tests() -> None:
    """By a test file of its name, or by one row of the table."""
    for module in MODULES:
        named = [row for row in rows() if any(fnmatchcase(module, one) for one in row[0])]
        if named or not own_test(module).exists():
            assert len(named) == 1, f"say in CONTRIBUTING.md, in one row, where {module} is tested"


def test_the_table_names_what_is_there() -> None:
    for patterns, tests in rows():
        assert tests, patterns
        for test in tests:
            assert (ROOT / test).exists(), test
        for pattern in patterns:
            found = [module for module in MODULES if fnmatchcase(module, pattern)]
            assert found, f"{pattern} is no module"
