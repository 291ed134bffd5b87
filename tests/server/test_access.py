"""Who may talk to the server: Host, Origin, the key, and what a page of another site gets."""

from collections.abc import Iterator
from typing import Any

import pytest
from support.serving import Running, running

from engine import Engine, OptionError
from engine.server import Settings

KEY = "correct-horse-battery"


@pytest.fixture(scope="module")
def locked(tiny_engine: Engine) -> Iterator[Running]:
    origins = ("https://app.example",)
    with running(tiny_engine, model="tiny", api_key=KEY, cors_origins=origins) as server:
        yield server


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "localhost.",
        "127.0.0.2",
        "0.0.0.0",
        "10.0.0.1",
        "2130706433",
        "0x7f.1",
        "user@127.0.0.1",
        "127.0.0.1/",
        "127.0.0.1:x",
        "127.0.0.1:99999",
        "[::1",
        "[::2]",
        "evil.example[::1]",
        "[::1]evil.example",
        "[::1]evil.example:80",
        "127.0.0.1:",
        "127.0.0.1:0",
        "127.0.0.1,evil.example",
        "",
    ],
)
def test_other_hosts_are_refused(tiny_server: Running, host: str) -> None:
    reply = tiny_server.ask("GET", "/v1/models", headers={"host": host})
    assert reply.status in (400, 403)
    reply.error  # noqa: B018 - checks its form


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9", "LOCALHOST", "[::1]:80"])
def test_own_hosts_are_served(tiny_server: Running, host: str) -> None:
    assert tiny_server.ask("GET", "/v1/models", headers={"host": host}).status == 200


def test_two_hosts_or_none_are_refused(tiny_server: Running) -> None:
    for head in ("Host: localhost\r\nHost: evil.example\r\n", ""):
        for version in ("1.1", "1.0"):
            with tiny_server.connect() as connection:
                connection.sendall(f"GET /health HTTP/{version}\r\n{head}\r\n".encode())
                assert connection.recv(100).split()[1] in (b"400", b"403")


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://127.0.0.1.evil.example",
        "http://127.0.0.1:1",  # another server of this machine
        "https://127.0.0.1",
        "file://",
        "",
    ],
)
def test_other_origins_are_refused_and_get_no_cors(tiny_server: Running, origin: str) -> None:
    for method in ("POST", "OPTIONS", "GET"):
        reply = tiny_server.ask(method, "/v1/models", headers={"origin": origin})
        assert reply.status == 403
        assert reply.error["code"] == "origin_not_allowed"
        assert not any(name.startswith("access-control") for name in reply.headers)


def test_two_origins_are_refused(tiny_server: Running) -> None:
    with tiny_server.connect() as connection:
        own = f"Origin: {tiny_server.url}\r\n"
        head = f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{tiny_server.port}\r\n{own}{own}\r\n"
        connection.sendall(head.encode())
        assert connection.recv(100).split()[1] == b"403"


def test_its_own_page_may_ask(tiny_server: Running) -> None:
    headers = {"origin": tiny_server.url}
    reply = tiny_server.ask("GET", "/v1/models", headers=headers)
    assert reply.status == 200
    assert not any(name.startswith("access-control") for name in reply.headers)
    preflight = {**headers, "access-control-request-method": "POST"}
    assert tiny_server.ask("OPTIONS", "/v1/models", headers=preflight).status == 405


def test_its_page_behind_a_proxy_with_tls_may_ask(tiny_engine: Engine) -> None:
    names = {"allowed_hosts": ("box.example",), "cors_origins": ("https://box.example",)}
    with running(tiny_engine, **names) as server:
        headers = {"host": "box.example", "origin": "https://box.example"}
        assert server.chat("Hello", headers).status == 200
        assert server.chat("Hello", {**headers, "origin": "https://x.example"}).status == 403


def test_what_answers_tell_is_embedded_nowhere(tiny_server: Running) -> None:
    for path in ("/v1/models", "/metrics", "/health", "/nowhere", "/"):
        headers = tiny_server.ask("GET", path).headers
        assert headers["cross-origin-resource-policy"] == "same-origin", path
        assert headers["x-content-type-options"] == "nosniff", path


def test_a_listed_origin_gets_cors_and_no_other_does(locked: Running) -> None:
    origin = {"origin": "https://app.example"}
    preflight = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    reply = locked.ask("OPTIONS", "/v1/chat/completions", headers={**origin, **preflight})
    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == "https://app.example"
    assert "access-control-allow-credentials" not in reply.headers
    methods = {**origin, **preflight, "access-control-request-method": "DELETE"}
    assert locked.ask("OPTIONS", "/v1/responses/resp_1", headers=methods).status == 200
    # A wrong key is told in a way that the page can read.
    reply = locked.ask("GET", "/v1/models", headers=origin)
    assert reply.status == 401
    assert reply.headers["access-control-allow-origin"] == "https://app.example"
    other = {"origin": "https://app.example.evil.example", **preflight}
    assert locked.ask("OPTIONS", "/v1/models", headers=other).status == 403


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY}x",
        f"Bearer {KEY.upper()}",
        f"Basic {KEY}",
        KEY,
        "Bearer correct-horse-batter\xff",
        f"Bearer {KEY}, Bearer {KEY}",
    ],
)
def test_a_wrong_key_is_refused(locked: Running, given: str | None) -> None:
    headers = {} if given is None else {"authorization": given}
    for method, path in (
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/no/such/place"),
        ("OPTIONS", "/v1/models"),
        ("DELETE", "/health/x"),
        ("GET", "//health"),
        ("GET", "/health/"),
        ("GET", "/page/../metrics"),
        ("GET", "/%6detrics"),
    ):
        reply = locked.ask(method, path, {} if method == "POST" else None, headers)
        assert reply.status == 401, path
        assert reply.error["code"] == "invalid_api_key"
        assert reply.headers["www-authenticate"] == "Bearer"


def test_the_right_key_is_let_in(locked: Running) -> None:
    headers = {"authorization": f"bearer {KEY}"}
    assert locked.ask("GET", "/v1/models", headers=headers).status == 200
    assert locked.chat("Hello", headers).status == 200


def test_the_page_and_the_health_need_no_key(locked: Running) -> None:
    assert locked.ask("GET", "/health").status == 200
    assert locked.ask("GET", "/").status == 200
    assert locked.ask("GET", "/v1/models").status == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_another_host_needs_a_key(host: str) -> None:
    with pytest.raises(OptionError, match="set an API key"):
        Settings(host=host)
    assert KEY not in repr(Settings(host=host, api_key=KEY))


@pytest.mark.parametrize("key", ["", "short", "with a space", "ümlaute-überall", "x" * 600])
def test_keys_that_are_none_are_refused(key: str) -> None:
    with pytest.raises(OptionError, match="API key"):
        Settings(api_key=key)


@pytest.mark.parametrize("name", ["*", "*.example", "box:8000", "http://box", "box/", "", "[::1]"])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(OptionError, match="no host's name"):
        Settings(allowed_hosts=(name,))


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "app.example",
        "https://app.example/",
        "https://u@a.b",
        "https://App.example",
        "https://app.example:443",
        "NULL",
        "null ",
        "null,https://app.example",
        "app://",
        "app://*",
        "app://name/",
        "app://Name",
        "app://user@name",
        "app://name:80",
        "APP://name",
        "app:name",
        "app://name\n",
        "tauri://a b",
        "chrome-extension://ümlaut",
        "file://",
        "data://x",
        "javascript://x",
        "moz-extension://x",
        "ws://app.example",
        f"app://{'a' * 254}",
    ],
)
def test_origins_that_are_none_are_refused(origin: str) -> None:
    with pytest.raises(OptionError, match="no origin"):
        Settings(cors_origins=(origin,))


APPS = (
    "app://obsidian.md",
    "app://-",
    "tauri://localhost",
    "capacitor://localhost",
    "vscode-webview://0k3s1qv8q9",
    "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
    "null",
)


@pytest.fixture(scope="module")
def for_apps(letters_engine: Engine) -> Iterator[Running]:
    with running(letters_engine, cors_origins=APPS) as server:
        yield server


@pytest.mark.parametrize("origin", APPS)
def test_an_app_that_is_listed_may_call(for_apps: Running, origin: str) -> None:
    asks = {"origin": origin, "access-control-request-method": "POST"}
    for method, headers in (("GET", {"origin": origin}), ("OPTIONS", asks)):
        reply = for_apps.ask(method, "/v1/models", headers=headers)
        assert reply.status == 200
        assert reply.headers["access-control-allow-origin"] == origin
        assert "access-control-allow-credentials" not in reply.headers


@pytest.mark.parametrize(
    "origin",
    [
        "app://obsidian.md.evil.example",
        "app://obsidian",
        "app://evil",
        "APP://obsidian.md",
        "Null",
        "tauri://localhost:1",
        "https://localhost",
        "vscode-webview://other",
        "app://",
        "",
    ],
)
def test_no_other_app_may(for_apps: Running, origin: str) -> None:
    reply = for_apps.ask("GET", "/v1/models", headers={"origin": origin})
    assert reply.status == 403
    assert not any(name.startswith("access-control") for name in reply.headers)


def test_a_refusal_names_what_lets_one_in(tiny_server: Running) -> None:
    docker = tiny_server.ask("GET", "/health", headers={"host": "host.docker.internal:8000"})
    assert "--allow-host" in docker.error["message"]
    other = tiny_server.ask("GET", "/health", headers={"origin": "app://other"})
    assert "--cors-origin" in other.error["message"]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (None, "there is none"),
        ("text/plain", "it is 'text/plain'"),
        ("application/x-www-form-urlencoded", "x-www-form-urlencoded"),
        ("application/json5", "json5"),
        ("x" * 5000, "xxx"),
        ("\xfc/json", "it is"),
        ("", "there is none"),
    ],
)
def test_a_body_that_is_not_said_to_be_json(
    tiny_server: Running, kind: str | None, told: str
) -> None:
    """A page of another site can send such a request without asking first."""
    headers: dict[str, Any] = {"content-type": kind}
    reply = tiny_server.chat("Hello", headers)
    assert (reply.status, reply.error["code"]) == (400, "invalid_content_type")
    assert "application/json" in reply.error["message"]
    assert told in reply.error["message"]
    assert len(reply.error["message"]) < 300
    for json in ("application/json; charset=utf-8", "Application/JSON", "application/x+json"):
        assert tiny_server.chat("Hello", {"content-type": json}).status == 200


def test_every_address_of_a_machine_may_be_named_when_it_listens_for_others(
    tiny_engine: Engine,
) -> None:
    # Bound to the loopback all the same: nothing here is open to others.
    names = ("box.example",)
    with running(tiny_engine, host="0.0.0.0", api_key=KEY, allowed_hosts=names) as server:
        for host, status in (
            ("192.168.1.5:8000", 200),
            ("[fe80::1]", 200),
            ("box.example", 200),
            ("evil.example", 403),
        ):
            assert server.ask("GET", "/health", headers={"host": host}).status == status
