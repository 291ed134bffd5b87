"""`sightline serve`, started for clients to talk to."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from scripts.clients import taught

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "model_kit" / "demo_parts" / "samples" / "animals.png"


@contextmanager
def started(
    command: list[str], ready: str, environment: dict[str, str] | None = None, **how: str | Path
) -> Iterator[re.Match[str]]:
    """A program that serves, until it is left; what it said when it was ready.

    Raises SystemExit with its last words if it ends before.
    """
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    env = {**os.environ, **(environment or {})}
    process = subprocess.Popen(command, text=True, env=env, **streams, **how)  # type: ignore[call-overload]
    try:
        said: list[str] = []
        for line in process.stdout:
            said.append(line)
            if found := re.search(ready, line):
                break
        else:
            raise SystemExit(f"{command[0]} did not start:\n" + "".join(said[-20:]))
        # What it goes on to say is read, so that it does not wait for a reader.
        reader = threading.Thread(target=lambda: [None for _ in process.stdout], daemon=True)
        reader.start()
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def sightline(model: str, name: str) -> Iterator[str]:
    """The address of a server of that model, with /v1."""
    command = [sys.executable, "-m", "engine", "serve", "--model", model, "--port", "0"]
    ready = r"http://127\.0\.0\.1:\d+"
    with started([*command, "--served-name", name], ready, cwd=ROOT) as found:
        yield found[0] + "/v1"


@contextmanager
def places(folder: Path, roomy: bool) -> Iterator[dict[str, str]]:
    """Servers of the taught model and of the demo model, as variables for the clients' programs."""
    context = taught.ROOMY if roomy else taught.CONTEXT
    model = taught.save(folder, context)
    with ExitStack() as stack:
        yield {
            "SIGHTLINE_TAUGHT": stack.enter_context(sightline(str(model), "taught")),
            "SIGHTLINE_DEMO": stack.enter_context(sightline("demo", "demo")),
            "SIGHTLINE_CONTEXT": str(context),
            "SIGHTLINE_PICTURE": str(PICTURE),
            "SIGHTLINE_ANSWER": taught.ANSWER,
            "SIGHTLINE_SUNNY": taught.SUNNY,
        }
