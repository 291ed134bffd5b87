"""Follow docs/writing-an-add-on.md to the letter, in an empty folder and a fresh environment.

    python -m scripts.follow_tutorial

Every file of the page is written and every command run, in their order, with a copy of this
checkout beside the new package, as the page has it. What it needs comes from PyPI. Shows what the
steps print and the time that each took; a step that fails ends it.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "writing-an-add-on.md"
FENCE = re.compile(r'^```(\w+)(?: title="([^"\n]+)")?\n(.*?)^```$', re.M | re.S)
MARK = "@@@ line"


@dataclass(frozen=True)
class Step:
    """One block of the page."""

    kind: str
    """file: to be written; sh, python: to be run; text: what the step before it prints."""
    code: str
    line: int
    """Of the page, at which the block's code begins."""
    file: str = ""

    @property
    def makes_environment(self) -> bool:
        return "-m venv" in self.code


def steps(page: Path = PAGE) -> list[Step]:
    """The page's blocks. Several with one title are the pieces of one file."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        language, title, code = match.groups()
        line = text.count("\n", 0, match.start(3)) + 1
        found.append(Step("file" if title else language, code, line, title or ""))
    return found


def files(followed: Sequence[Step]) -> dict[str, str]:
    """The files that these steps write."""
    whole: dict[str, str] = {}
    for step in followed:
        if step.kind == "file":
            whole[step.file] = whole.get(step.file, "") + piece(step, step.file not in whole)
    return whole


def piece(step: Step, first: bool) -> str:
    """A piece of a file with the empty lines before it that Python's style asks for."""
    if first:
        return step.code
    return ("\n" if step.code.startswith(" ") else "\n\n") + step.code


def as_script(followed: Sequence[Step]) -> str:
    """The steps as one bash script, so that folders and environments stay as they are changed."""
    lines = ["set -eu"]
    begun: set[str] = set()
    for step in followed:
        lines.append(f'echo "{MARK} {step.line}"')
        if step.kind == "file":
            content = piece(step, step.file not in begun)
            begun.add(step.file)
            lines += [f"mkdir -p {Path(step.file).parent}", f"cat >> {step.file} <<'@@@'"]
            lines += [f"{content}@@@"]
        elif step.kind == "python":
            lines += [f"python - <<'@@@'\n{step.code}@@@"]
        elif step.kind == "sh":
            lines.append(step.code)
    return "\n".join(lines)


def follow(followed: Sequence[Step], place: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Run the steps from the folder `place`, and yield what they print, line by line.

    Raises RuntimeError with the page's line if a step fails, or does not print what is shown.
    """
    with subprocess.Popen(
        ["bash", "-c", as_script(followed)],
        cwd=place,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        assert running.stdout is not None
        printed: dict[int, list[str]] = {}
        line = 0
        for text in running.stdout:
            if text.startswith(MARK):
                line = int(text.removeprefix(MARK))
            printed.setdefault(line, []).append(text.rstrip("\n"))
            yield text
    where = f"{PAGE.name}, line {line}"
    if running.returncode:
        raise RuntimeError(f"{where}: " + "\n".join(printed.get(line, [])[-80:]))
    for before, step in pairwise(followed):
        if step.kind == "text":
            said = printed[before.line]
            missing = [t for t in step.code.splitlines() if t != "..." and t not in said]
            if missing:
                raise RuntimeError(f"{PAGE.name}, line {step.line}: {missing} is not in {said}")


def copy_checkout(target: Path) -> None:
    """The files of this checkout that git knows or would know, without what was built from them."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", metavar="DIR", help="work in this new folder, and leave it")
    keep = parser.parse_args().keep
    place = Path(keep or tempfile.mkdtemp(prefix="tutorial-"))
    place.mkdir(parents=True, exist_ok=True)
    try:
        copy_checkout(place / "sightline")
        # Nothing of the environment that this script runs in.
        base = Path(getattr(sys, "_base_executable", sys.executable)).resolve().parent
        names = ("HOME", "LANG", "TMPDIR", "SSL_CERT_FILE")
        environment = {
            name: value
            for name, value in os.environ.items()
            if name in names or name.startswith("PIP_")
        }
        environment["PATH"] = f"{base}:/usr/local/bin:/usr/bin:/bin"
        started = since = time.monotonic()
        last = ""
        for text in follow(steps(), place, environment):
            if text.startswith(MARK):
                if last and time.monotonic() - since > 1:
                    print(f"    ({time.monotonic() - since:.0f} s)")
                since, last = time.monotonic(), text
            print(text, end="", flush=True)
        print(f"followed in {(time.monotonic() - started) / 60:.1f} minutes")
    finally:
        if keep is None:
            shutil.rmtree(place)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
