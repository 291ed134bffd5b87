"""A Hugging Face hub of our own: the few answers that a download of a model asks for."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


@dataclass
class Repo:
    """A model as the hub has it."""

    folder: Path
    revisions: dict[str, str] = field(default_factory=lambda: {"main": "a" * 40})
    """Commits by the names of branches and tags."""
    denied: tuple[int, str] | None = None
    """The status and X-Error-Code that its files are answered with; the list of files is public."""
    sizes: dict[str, int] = field(default_factory=dict)
    """What to claim instead of the truth."""
    xet: dict[str, str] = field(default_factory=dict)
    """The files that come from a xet store, and their hashes there."""
    store: str = ""
    """Where that is."""

    def move_to_xet(self, name: str, store: Path) -> None:
        """Have a file served as the hub serves weights nowadays."""
        import hf_xet

        self.store = f"local://{store}"
        with hf_xet.XetSession().new_upload_commit(endpoint=self.store) as commit:
            upload = commit.start_upload_file(str(self.folder / name))
        self.xet[name] = upload.result().xet_info.hash

    def files(self) -> dict[str, Path]:
        paths = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        return {str(path.relative_to(self.folder)): path for path in paths}


class TinyHub:
    """Serves `repos`, by their ids, until it is left."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.status = 200
        """Of every answer, if it is another."""
        self.requests: list[str] = []
        self.stall: str | None = None
        """The name of a file of which half is sent, and then nothing."""
        self.stalled = threading.Event()
        self.resumed = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.resumed.set()
        self._server.shutdown()
        self._server.server_close()

    def downloaded(self) -> set[str]:
        """The files that were asked for."""
        return {
            r.rpartition("/")[2] for r in self.requests if r.startswith("GET") and "/resolve/" in r
        }

    def _handler(hub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                hub.requests.append(f"{self.command} {path}")
                if hub.status != 200:
                    return self._send(hub.status, b"out of order")
                parts = path.strip("/").split("/")
                if parts[0] == "api":
                    self._answer_api("/".join(parts[2:4]), parts[4:])
                else:
                    self._answer_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None: ...

            def _answer_api(self, name: str, rest: list[str]) -> None:
                repo = hub.repos.get(name)
                if repo is None:
                    return self._refuse(404, "RepoNotFound")
                commit = self._commit(repo, "/".join(rest[1:]) or "main")
                if commit is None:
                    return self._refuse(404, "RevisionNotFound")
                if rest[:1] == ["xet-read-token"]:
                    token = {"X-Xet-Access-Token": "token", "X-Xet-Token-Expiration": "9999999999"}
                    return self._send(200, b"{}", {**token, "X-Xet-Cas-Url": repo.store})
                sizes = {n: repo.sizes.get(n, p.stat().st_size) for n, p in repo.files().items()}
                if rest[:1] == ["tree"]:
                    entry = {"type": "file", "oid": "0" * 40}
                    told: object = [{**entry, "path": n, "size": s} for n, s in sizes.items()]
                else:
                    siblings = [{"rfilename": n, "size": s} for n, s in sizes.items()]
                    told = {"id": name, "sha": commit, "siblings": siblings}
                self._send(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

            def _answer_file(self, name: str, revision: str, file: str) -> None:
                repo = hub.repos[name]
                if repo.denied is not None:
                    return self._refuse(*repo.denied)
                content = repo.files()[file].read_bytes()
                headers = {
                    "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                    "X-Repo-Commit": self._commit(repo, revision) or "",
                }
                if file in repo.xet:
                    route = f"{hub.url}/api/models/{name}/xet-read-token/{revision}"
                    headers |= {"X-Xet-Hash": repo.xet[file], "X-Xet-Refresh-Route": route}
                self._send(200, content, headers, stall=file == hub.stall)

            def _commit(self, repo: Repo, revision: str) -> str | None:
                known = revision in repo.revisions.values()
                return revision if known else repo.revisions.get(revision)

            def _refuse(self, status: int, code: str) -> None:
                self._send(status, b"{}", {"X-Error-Code": code})

            def _send(
                self,
                status: int,
                body: bytes,
                headers: dict[str, str] | None = None,
                stall: bool = False,
            ) -> None:
                self.send_response(status)
                for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "HEAD":
                    return
                if stall and not hub.resumed.is_set():
                    self.wfile.write(body[: len(body) // 2])
                    hub.stalled.set()
                    hub.resumed.wait()
                    self.close_connection = True
                    return
                self.wfile.write(body)

        return Handler


@contextmanager
def tiny_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyHub]:
    """A hub that this process and those that it starts use, with a cache of its own."""
    from huggingface_hub import constants

    hub = TinyHub()
    # Processes that are started read the variables; in this one the library has read them.
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(cache))
    monkeypatch.setenv("HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    files = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    try:
        yield hub
    finally:
        hub.close()
