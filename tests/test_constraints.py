"""The constraints file is the lower end of every range that pyproject.toml claims."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
TOOLS = ("dev", "parity", "clients", "cuda")  # exact, or whatever is newest; and MLX once more


def claimed() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = project["dependencies"] + [x for e in extras if e not in TOOLS for x in extras[e]]
    return {r.name: r for r in map(Requirement, lines)}


def lowest() -> dict[str, str]:
    lines = (ROOT / "constraints" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {r.name: str(r.specifier) for r in pinned}


def test_every_range_has_its_lower_end_in_the_constraints() -> None:
    ends = {
        name: [f"=={s.version}" for s in requirement.specifier if s.operator == ">="]
        for name, requirement in claimed().items()
    }
    assert {name: [pin] for name, pin in lowest().items()} == ends
