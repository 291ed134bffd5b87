"""Open WebUI as its wheel comes: started, an account opened, messages sent as its page sends them.

With all of its defaults: it offers the model its own tools, has the answer streamed, and then has
titles, tags and further questions thought of. Runs within Open WebUI's environment, with nothing
but Python's own library.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from scripts.clients import program as p

SECONDS = 600
"""How long it may take to start, which the first time creates its database; and for an answer."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class OpenWebUI:
    def __init__(self, folder: str) -> None:
        self.port, self.token = free_port(), ""
        given = {
            "DATA_DIR": folder,
            "OPENAI_API_BASE_URLS": f"{p.BASE};{p.EYES}",
            "OPENAI_API_KEYS": f"{p.KEY};{p.KEY}",
            "HF_HUB_OFFLINE": "1",  # it would fetch a model for documents, which nothing here needs
        }
        command = [str(Path(sys.executable).with_name("open-webui")), "serve"]
        self._log = open(Path(folder, "log"), "w")  # noqa: SIM115
        self._process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(self.port)],
            env={**os.environ, **given},
            cwd=folder,
            stdout=self._log,
            stderr=self._log,
        )

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)
        self._log.close()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"content-type": "application/json", "authorization": f"Bearer {self.token}"}
        data = None if body is None else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {error.code}: {error.read(500)!r}") from error

    def sign_up(self) -> None:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                self.ask("GET", "/health")
                break
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(1)
        account = {"name": "Ann", "email": "ann@example.org", "password": str(uuid.uuid4())}
        self.token = self.ask("POST", "/api/v1/auths/signup", account)["token"]

    def send(self, content: Any, model: str = p.MODEL, **more: Any) -> tuple[str, Any]:
        """A first message; the chat that it began, and what its page is told of it."""
        asked, answer = str(uuid.uuid4()), str(uuid.uuid4())
        message = {"id": asked, "parentId": None, "childrenIds": [], "role": "user"}
        message |= {"content": content, "models": [model], "timestamp": int(time.time())}
        tasks = {"title_generation": True, "tags_generation": True, "follow_up_generation": True}
        body = {
            "stream": True,
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "params": {},
            "features": {},
            "session_id": str(uuid.uuid4()),
            "message_ids": [{"model_id": model, "message_id": answer}],
            "parent_id": None,
            "user_message": message,
            "background_tasks": tasks,
            **more,
        }
        told = self.ask("POST", "/api/chat/completions", body)
        return told["chat_id"], told

    def answer(self, chat: str) -> dict[str, Any]:
        """The answer that a chat ends with, once it is done."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            messages = self.ask("GET", f"/api/v1/chats/{chat}")["chat"]["history"]["messages"]
            for message in messages.values():
                if message["role"] == "assistant" and (message.get("done") or "error" in message):
                    return dict(message)
            time.sleep(0.5)
        raise AssertionError("no answer came")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        ui = OpenWebUI(folder)
        try:
            ui.sign_up()
            talk(ui)
        finally:
            ui.stop()


def talk(ui: OpenWebUI) -> None:
    def chat() -> None:
        assert {one["id"] for one in ui.ask("GET", "/api/models")["data"]} >= {"taught", "demo"}
        p.expect(said(ui.answer(ui.send(p.QUESTION)[0])), p.ANSWER)

    def picture() -> None:
        parts = [
            {"type": "text", "text": p.LOOK},
            {"type": "image_url", "image_url": {"url": p.picture_uri()}},
        ]
        quiet = {"background_tasks": {}, "params": {"max_tokens": 8}}
        p.expect_in(p.BADGER, said(ui.answer(ui.send(parts, "demo", **quiet)[0])))

    def tools() -> None:
        p.expect_in(p.SUNNY, said(ui.answer(ui.send("What time is it?")[0])))

    def errors() -> None:
        told = ui.answer(ui.send(p.QUESTION, params={"temperature": -1})[0])
        p.expect_in("temperature", told["error"])

    def cancel() -> None:
        with p.cancelled():
            _, told = ui.send(p.STORY, background_tasks={})
            time.sleep(2)
            for task in told.get("task_ids") or [told["task_id"]]:
                ui.ask("POST", f"/api/tasks/stop/{task}")

    p.report(
        "open-webui",
        chat=chat,
        picture=picture,
        tools=tools,
        errors=errors,
        cancel=cancel,
    )


def said(message: dict[str, Any]) -> Any:
    """What an answer says; its error, where it has one."""
    return message.get("error") or message["content"]


if __name__ == "__main__":
    main()
