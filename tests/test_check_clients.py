"""The quick half of `scripts/check_clients.py`: OpenAI's own client, its program and the table."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support.serving import Running, running

from engine import load

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the scripts are no installed package

from scripts.clients import environments, known, table, taught  # noqa: E402

FEATURES = [feature for feature in table.FEATURES if feature != "picture"]
"""But for pictures, which the demo model has to be asked about; see `tests/server`."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with (
        load(taught.save(tmp_path_factory.mktemp("taught"))) as engine,
        running(engine, model="taught") as server,
    ):
        yield server


def test_openai_python_does_all_that_it_offers(server: Running) -> None:
    place = {
        "SIGHTLINE_TAUGHT": f"{server.url}/v1",
        "SIGHTLINE_DEMO": f"{server.url}/v1",
        "SIGHTLINE_CONTEXT": str(taught.CONTEXT),
        "SIGHTLINE_ANSWER": taught.ANSWER,
        "SIGHTLINE_SUNNY": taught.SUNNY,
        "SIGHTLINE_FEATURES": " ".join(FEATURES),
    }
    (client,) = [client for client in known.CLIENTS if client.program == "openai_python"]
    command = environments.command(client)
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **place}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    row = table.Row("openai")
    for line in done.stdout.splitlines():
        row.told(json.loads(line))
    assert row.problems == {}
    assert set(row.features) == set(FEATURES)
    assert row.version


def test_a_full_context_is_told_in_words_that_clients_know(server: Running) -> None:
    """LangChain and LiteLLM look for the first, LangChain for Node and Qwen Code for the second."""
    message = server.chat("word " * (taught.CONTEXT // 4)).error["message"]
    assert "prompt is too long" in message
    assert "maximum context length" in message


def test_the_table_tells_what_failed_and_what_is_not_offered() -> None:
    row = table.Row("one")
    row.told({"package": "one", "version": "1.0"})
    row.told({"feature": "chat", "problem": None})
    row.told({"feature": "tools", "problem": "ValueError: no"})
    *_, line = table.markdown([row]).splitlines()
    assert line == "| one | 1.0 | ok | – | – | – | – | **no** | – | – | – |"
    assert row.problems == {"tools": "ValueError: no"}
    row.failed("ended with 1")
    assert table.markdown([row]).count("**no**") == len(table.FEATURES)
    page = f"before {table.BEGIN} old {table.END} after"
    written = table.written_into(page, "| a |", "Linux")
    assert written.startswith("before ")
    assert written.endswith(" after")
    assert "| a |" in written
    assert "old" not in written
    again = table.written_into(written, "| b |", "macOS")
    assert "| a |\n| b |" in again
    assert "Linux" not in again
    with pytest.raises(ValueError, match="clients: begin"):
        table.written_into("nothing", "", "")


def test_each_client_is_pinned_and_has_its_program() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    packages = json.loads((environments.NPM / "package.json").read_text())["dependencies"]
    asked = [*project["optional-dependencies"]["clients"]]
    for client in known.CLIENTS:
        asked += client.requirements
        program = client.program.split()[0]
        if client.kind is known.Kind.NPM:
            assert (environments.NPM / program).exists()
        else:
            assert (ROOT / "scripts" / "clients" / "programs" / f"{program}.py").exists()
    for requirement in map(Requirement, asked):
        assert [s.operator for s in requirement.specifier] == ["=="], requirement
    assert all(version[0].isdigit() for version in packages.values())
