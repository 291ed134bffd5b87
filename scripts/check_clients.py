"""Run clients that people use, as they are, against `sightline serve`: a table client x feature.

    python -m scripts.check_clients                 # those in Python, of the extra `clients`
    python -m scripts.check_clients --own           # those that need an environment of their own
    python -m scripts.check_clients --npm           # those for Node, of scripts/clients_npm
    python -m scripts.check_clients --open-webui    # Open WebUI, by its own API
    python -m scripts.check_clients --all           # all of these

`--only NAME ...` runs some of them, `--feature NAME ...` some things, and `--write PAGE` puts the
table into a page. Environments and packages that are not there yet are installed into
build/clients. Exits with 1 if something that a client offers does not work. Needs the extras `dev`
and `parity` beside `clients`.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from scripts.clients import environments, servers  # noqa: E402
from scripts.clients.known import CLIENTS, Client, Kind  # noqa: E402
from scripts.clients.table import FEATURES, Row, markdown, written_into  # noqa: E402

TOLD = ('{"package":', '{"feature":')
"""What lines of ours begin with."""

SECONDS = 1800
"""How long a client may take for all of its features."""


def run(client: Client, place: dict[str, str]) -> Row:
    """What came of each feature that the client offers."""
    row = Row(client.name)
    try:
        command = environments.command(client)
        environment = {**os.environ, **client.environment, **place}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
    except (subprocess.TimeoutExpired, environments.NotInstalled) as error:
        row.failed(str(error))
        return row
    for line in done.stdout.splitlines():
        if line.startswith(TOLD):  # clients print, too
            row.told(json.loads(line))
    if done.returncode or not row.features:
        row.failed(f"ended with {done.returncode}: {done.stderr[-1500:]}")
    return row


def run_all(clients: list[Client], roomy: bool, features: list[str]) -> list[Row]:
    """The same for several, on servers of their own."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, servers.places(Path(folder), roomy) as place:
        place |= {"SIGHTLINE_FEATURES": " ".join(features)}
        for client in clients:
            print(f"{client.name} ...", end=" ", flush=True, file=sys.stderr)
            rows.append(run(client, place))
            problems = [f"\n    {name}: {text}" for name, text in rows[-1].problems.items()]
            print("".join(problems) or "ok", flush=True, file=sys.stderr)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [client.name for client in CLIENTS]
    for kind in Kind:
        if kind is not Kind.EXTRA:
            parser.add_argument(f"--{kind.value}", action="store_true", help=kind.text)
    parser.add_argument("--all", action="store_true", help="all of them")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--feature", nargs="+", choices=FEATURES, help="these alone", default=[])
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and the servers with it
    kinds = {k for k in Kind if getattr(args, k.value.replace("-", "_"), False) or args.all}
    chosen = [c for c in CLIENTS if c.kind in (kinds or {Kind.EXTRA})]
    if args.only:
        chosen = [c for c in CLIENTS if c.name in args.only]
    rows: list[Row] = []
    for roomy in (False, True):
        group = [client for client in chosen if client.roomy is roomy]
        if group:
            rows += run_all(group, roomy, args.feature)
    table = markdown(rows)
    print(table)
    if args.write:
        machine = f"Python {platform.python_version()}, {platform.system()}"
        args.write.write_text(written_into(args.write.read_text(), table, machine))
    return 1 if any(row.problems for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
