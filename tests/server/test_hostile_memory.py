"""What an attack takes of a server's memory: of a program of its own, as the system counts it."""

import http.client
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import recited
from support.hostile_requests import ASKING, CHAT, ROWS, Json, schema
from support.seeds import SWEEP
from support.served import served

pytestmark = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="no VmHWM here that can be set back"
)

MIB = 2**20
MOST = 256 * MIB
"""What one request takes at most, its own bytes among it: docs/server.md says so."""
TOGETHER = 512 * MIB
"""What a server has at most after any number of them: allocators keep what was freed."""
NAMED = {f"{route} {name}": (route, body) for route, name, body, _ in ROWS}
HEAVY = (f"{CHAT} all messages", f"{CHAT} rare characters", f"{CHAT} parts of messages")
"""Those that take the most."""
SENT = list(NAMED) if SWEEP else list(dict.fromkeys([*list(NAMED)[::10], *HEAVY]))


class Program:
    """A server that has answered what is ordinary. Figures are in bytes."""

    def __init__(self, pid: int, url: str) -> None:
        self._process, self._host = Path(f"/proc/{pid}"), url.rpartition("/")[2]
        for _ in range(2):
            for route in ASKING:
                assert self.ask(route, {}) == 200
            assert self.ask(CHAT, schema({"type": "boolean"})) == 200
        self.before = self.memory()

    def ask(self, route: str, body: Json) -> int:
        """The status of the answer."""
        data = json.dumps({**ASKING[route], **body}, ensure_ascii=False).encode()
        connection = http.client.HTTPConnection(self._host, timeout=600)
        try:
            connection.request("POST", route, data, {"content-type": "application/json"})
            reply = connection.getresponse()
            reply.read()
            return reply.status
        finally:
            connection.close()

    def memory(self, name: str = "VmRSS") -> int:
        told = re.search(rf"{name}:\s+(\d+) kB", (self._process / "status").read_text())
        assert told is not None
        return int(told[1]) * 1024

    def seconds(self) -> float:
        """What of processors' time it took so far."""
        told = (self._process / "stat").read_text().rpartition(")")[2].split()
        return (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")

    def taken(self, route: str, body: Json) -> int:
        """What a request took at most, beside what was there."""
        before = self.memory()
        (self._process / "clear_refs").write_text("5")
        assert self.ask(route, body) in (200, 400)
        return self.memory("VmHWM") - before


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scripts: dict[Any, Any] = {1: "One.", 2: "Two.", 3: "Three."}
    return recited.save(tmp_path_factory.mktemp("recited") / "model", scripts)


@pytest.fixture
def program(folder: Path) -> Iterator[Program]:
    with served("--model", str(folder)) as (process, url):
        yield Program(process.pid, url)


@pytest.mark.whole
def test_all_of_them_again_and_again(program: Program) -> None:
    """None takes more than it may, nor do all of them together, and what was freed is used anew."""
    kept = []
    for turn in range(3 if SWEEP else 2):
        for name in SENT:
            taken = program.taken(*NAMED[name])
            assert taken < MOST, f"{name}: {taken / MIB:.0f} MiB"
        print(f"turn {turn}: {program.memory() / MIB:.0f} MiB, {program.seconds():.1f} s")
        kept.append(program.memory())
    assert max(kept) - program.before < TOGETHER, kept
    assert kept[-1] - kept[0] < MOST / 4, kept


if SWEEP:  # a server for each of them

    @pytest.mark.whole
    @pytest.mark.parametrize("name", SENT)
    def test_each_by_itself(program: Program, name: str) -> None:
        """Where nothing was freed before that it could use."""
        before = program.seconds()
        taken = program.taken(*NAMED[name])
        print(f"{name}: {taken / MIB:.0f} MiB, {program.seconds() - before:.1f} s")
        assert taken < MOST
