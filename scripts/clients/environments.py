"""Where clients are installed, and the commands that run their programs."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.clients.known import Client, Kind

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "clients"
NPM = ROOT / "scripts" / "clients_npm"
NODE = 22
"""The lowest version that the packages take."""


class NotInstalled(Exception):
    """What a client needs is not there, and cannot be had by this script."""


def command(client: Client) -> list[str]:
    """What runs a client's program, once what it needs is installed."""
    program, *more = client.program.split()
    if client.kind is Kind.NPM:
        return [_node(), str(NPM / program), *more]
    python = _own_python(client) if client.requirements else sys.executable
    return [python, "-m", f"scripts.clients.programs.{program}", *more]


def _own_python(client: Client) -> str:
    place = BUILD / client.program
    python = place / "bin" / "python"
    wanted = "\n".join(client.requirements)
    done = place / "installed.txt"
    if not done.exists() or done.read_text() != wanted:
        _install([sys.executable, "-m", "venv", "--clear", str(place)])
        quiet = ["--quiet", "--disable-pip-version-check"]
        _install([str(python), "-m", "pip", "install", *quiet, *client.requirements])
        done.write_text(wanted)
    return str(python)


def _node() -> str:
    node = shutil.which("node")
    if node is None:
        raise NotInstalled("Node.js is not installed")
    told = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.match(r"v(\d+)", told)
    if not found or int(found[1]) < NODE:
        raise NotInstalled(f"Node.js {NODE} or newer is needed, this is {told.strip()}")
    lock = NPM / "package-lock.json"
    done = NPM / "node_modules" / ".package-lock.json"
    if not done.exists() or done.stat().st_mtime < lock.stat().st_mtime:
        _install(["npm", "ci", "--no-audit", "--no-fund"], NPM)
    return node


def _install(command: list[str], place: Path = ROOT) -> None:
    try:
        subprocess.run(command, cwd=place, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotInstalled(f"what it needs cannot be installed: {error}") from error
