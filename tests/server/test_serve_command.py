"""`sightline serve` as a program, the page's files, and a share of the soak."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.served import served
from support.serving import Running, run_async, running

from engine import Engine
from engine.cli import main
from engine.server.page import page_paths

SOAK = Path(__file__).parents[2] / "scripts" / "soak_server.py"


def ask(url: str, body: Any) -> Any:
    body = {"logit_bias": {"2": -100}, **body}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), headers
    )
    with urllib.request.urlopen(request, timeout=600) as reply:
        return json.load(reply)


def test_it_serves_until_it_is_told_to_stop(letters_folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with served("--model", str(letters_folder), "--cache-dir", str(kept)) as (process, url):
        messages = [{"role": "user", "content": "Hello, and a few more words"}]
        for _ in range(2):  # one that goes on is a conversation, and worth keeping
            answer = ask(url, {"model": letters_folder.name, "messages": messages, "max_tokens": 9})
            assert answer["usage"]["completion_tokens"] == 9
            messages += [answer["choices"][0]["message"], {"role": "user", "content": "Go on"}]
        process.send_signal(signal.SIGTERM)
        assert process.wait(600) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
        # The engine was closed, and not cut off: it wrote what it keeps.
        assert any(file.stat().st_size > 1000 for file in kept.iterdir())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--host", "0.0.0.0"], "set an API key"),
        (["--port", "70000"], "--port"),
        (["--max-queue", "-1"], "max_queue"),
        (["--media-root", "/no/such/folder"], "no folder"),
        (["--cors-origin", "*"], "no origin"),
        (["--allow-host", "box:8000"], "no host's name"),
        (["--api-key", ""], "API key"),
        (["--cors-origin", "app://name/"], "no origin"),
        (["--served-name", " "], "--served-name"),
        (["--served-name", "a\nb"], "--served-name"),
        (["--served-name", "x" * 257], "--served-name"),
        (["--host", "no.such.host.invalid", "--api-key", "long-enough"], "cannot listen"),
    ],
)
def test_what_it_cannot_do_is_said_in_a_line(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--model", "/no/such/model", *arguments]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1


def test_a_port_in_use_is_known_before_the_model_loads(
    tiny_server: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--model", "/no/such/model", "--port", str(tiny_server.port)]) == 2
    assert "cannot listen on '127.0.0.1'" in capsys.readouterr().err


def test_the_key_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIGHTLINE_API_KEY", "long-enough-a-key")
    assert main(["serve", "--model", "/no/such/model", "--host", "127.0.0.2", "--port", "0"]) == 2
    assert "/no/such/model" in capsys.readouterr().err  # it came as far as the model


WITHOUT = """
import sys
for name in ("fastapi", "uvicorn", "prometheus_client"):
    sys.modules[name] = None
import engine
assert not any(name.startswith("engine.server") for name in sys.modules)
from engine.cli import main
sys.exit(main(["serve", "--model", "/no/such/model"]))
"""


def test_without_its_packages_it_says_what_to_install() -> None:
    ended = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "pip install 'sightline[server]'" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_importing_the_engine_imports_no_server() -> None:
    code = (
        "import sys, engine, engine.cli;"
        "print([n for n in sys.modules if n.partition('.')[0] in ('fastapi', 'uvicorn', 'h11')])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout.strip() == "[]"


# --- the page ---------------------------------------------------------------------------------


def test_the_page_comes_with_a_strict_policy(tiny_server: Running) -> None:
    paths = page_paths()
    assert "/" in paths
    html = tiny_server.ask("GET", "/").body.decode()
    linked = re.findall(r'(?:src|href)="(/[^"]*)"', html)
    assert linked
    assert set(linked) <= set(paths)
    for path in paths:
        reply = tiny_server.ask("GET", path)
        assert reply.status == 200
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cache-control"] == "no-cache"
        kind = {"js": "text/javascript", "css": "text/css"}.get(path.rpartition(".")[2])
        assert reply.headers["content-type"].startswith(kind or "text/html")
        again = tiny_server.ask("GET", path, headers={"if-none-match": reply.headers["etag"]})
        assert (again.status, again.body) == (304, b"")


# --- the soak ---------------------------------------------------------------------------------


def _soak() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soak_server", SOAK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def others() -> int:
    """How many threads there are, without those of pools, which grow to their size at times."""
    return sum(not t.name.startswith("sightline-request") for t in threading.enumerate())


def test_a_share_of_the_soak(letters_engine: Engine, seed: int) -> None:
    """Every request ends once, and nothing stays behind: no place, thread or file."""
    soak_server = _soak()
    with running(letters_engine, model="tiny") as server:
        soak = soak_server.Soak(server.port, "tiny", seed, lambda done: None)
        run_async(soak.run(10, 8))
        told = run_async(soak_server.settled(server.port))
        threads, files = others(), len(os.listdir("/dev/fd"))
        first = soak_server.answers(told), soak.counts["ended"], soak.counts["asked"]
        assert first[1] <= first[0] <= first[2]
        run_async(soak.run(30, 8))
        told = run_async(soak_server.settled(server.port))
        assert soak.counts["ended"] + soak.counts["left"] == 40
        assert soak.counts["stop"] + soak.counts["length"] == soak.counts["ended"]
        assert soak.counts["ended"] <= soak_server.answers(told) <= soak.counts["asked"]
        follow_ups = run_async(soak.burst(6))
        # Each went on with what was at hand, and its first text came once its turn was there.
        assert all(one.cached > 20 for one in follow_ups)
        told_of = soak_server.waits(follow_ups)
        assert len(told_of) == 5
        assert all(0 < turn < wait for wait, turn in told_of)
        assert soak_server.answers(run_async(soak_server.settled(server.port))) >= 12
        assert others() <= threads + 1
        assert len(os.listdir("/dev/fd")) <= files + 8
