"""The table client x feature."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

FEATURES = (
    "chat",
    "stream",
    "picture",
    "usage",
    "stop",
    "tools",
    "structured",
    "errors",
    "cancel",
)
OFF, OK, FAILED = "–", "ok", "**no**"
BEGIN, END = "<!-- clients: begin -->", "<!-- clients: end -->"


@dataclass
class Row:
    """What came of one client; a feature that is not there is none that the client offers."""

    name: str
    version: str = ""
    features: dict[str, bool] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def told(self, line: dict[str, Any]) -> None:
        """A line of the client's program: its version, or one feature."""
        if "version" in line:
            self.version = line["version"]
            return
        self.features[line["feature"]] = line["problem"] is None
        if line["problem"] is not None:
            self.problems[line["feature"]] = line["problem"]

    def failed(self, problem: str) -> None:
        """The program itself did not do: no feature is known to work."""
        self.problems["program"] = problem
        self.features = dict.fromkeys(FEATURES, False)


def _cell(row: Row, feature: str) -> str:
    done = row.features.get(feature)
    return OFF if done is None else OK if done else FAILED


def markdown(rows: Sequence[Row]) -> str:
    lines = [["client", "version", *FEATURES], ["---"] * (2 + len(FEATURES))]
    lines += [[r.name, r.version, *(_cell(r, f) for f in FEATURES)] for r in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def written_into(page: str, table: str, machine: str) -> str:
    """A page with the table between its two marks; rows of clients that are not in it stay.

    Raises ValueError where the marks are missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN} and {END}")
    old = [line for line in rest.partition(END)[0].splitlines() if line.startswith("| ")]
    lines = {line.split(" | ")[0]: line for line in [*old, *table.splitlines()]}
    table = "\n".join(lines.values())
    when = f"As of {datetime.date.today():%Y-%m-%d}, {machine}:"
    return f"{before}{begin}\n\n{when}\n\n{table}\n\n{end}{after}"
