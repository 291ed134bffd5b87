"""Pictures from addresses that a client names: an attack table, on loopback alone.

Names resolve through a table of the test's own, and "public" addresses are led to a server on
loopback, with a note of which address was asked for.
"""

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest
from support.serving import Running, data_uri, encoded, image_part, run_async, running

from engine import Engine
from engine.server.addresses import is_public
from engine.server.errors import ApiError
from engine.server.fetch import Connection, Fetcher, resolve

PUBLIC = "93.184.215.14"
PICTURE = encoded()


class Web:
    """A server that sends what it is told to, and the fetcher's way to it."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.names: dict[str, list[list[str]]] = {
            name: [["::1", "127.0.0.1"]] for name in ("localhost", "localhost.")
        }
        self.answers: dict[str, bytes | Callable[[socket.socket], None]] = {}
        self.reached: list[tuple[str, int]] = []
        self.asked: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        if host not in self.names:
            return await resolve(host, port) if _numeric(host) else []
        known = self.names[host]
        return known.pop(0) if len(known) > 1 else known[0]

    async def connect(
        self, address: str, port: int, context: ssl.SSLContext | None, name: str | None
    ) -> Connection:
        self.reached.append((address, port))
        return await asyncio.open_connection("127.0.0.1", self.port)

    def fetcher(self, **changes: Any) -> Fetcher:
        settings = {"max_bytes": 100_000, "seconds": 600.0, **changes}
        return Fetcher(resolve=self.resolve, connect=self.connect, **settings)

    def fetch(self, url: str, **changes: Any) -> bytes:
        return run_async(self.fetcher(**changes).fetch(url))

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            asked = connection.recv(65536)
            self.asked.append(asked)
            answer = self.answers.get(asked.split(b" ")[1].decode(), b"HTTP/1.1 404 No\r\n\r\n")
            try:
                if callable(answer):
                    answer(connection)
                else:
                    connection.sendall(answer)
            except OSError:
                pass


def _numeric(host: str) -> bool:
    """Whether a name is a number to the C library, however oddly written: no look-up is made."""
    try:
        socket.getaddrinfo(host, 80, flags=socket.AI_NUMERICHOST)
    except OSError:
        return False
    return True


def response(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    fields = {"content-length": str(len(body))} | given
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    web.names["site.example"] = [[PUBLIC]]
    web.answers["/cat.png"] = response(PICTURE, content_type="text/html")
    with closing(web.listener):
        yield web


def refused(web: Web, url: str, **changes: Any) -> str:
    with pytest.raises(ApiError) as caught:
        web.fetch(url, **changes)
    assert caught.value.status_code == 400
    return str(caught.value.detail)


def test_a_picture_is_fetched_from_the_address_that_was_checked(web: Web) -> None:
    assert web.fetch("http://site.example/cat.png") == PICTURE
    assert web.reached == [(PUBLIC, 80)]
    head = web.asked[0].lower()
    assert b"\r\nhost: site.example\r\n" in head
    assert b"cookie" not in head
    assert b"authorization" not in head
    web.answers["/a?b=c%20d"] = response(b"x")
    assert web.fetch("http://SITE.example:8080/a?b=c%20d#e") == b"x"
    assert web.reached[-1] == (PUBLIC, 8080)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.0.0.1/",
        "http://0177.0.0.1/",
        "http://017700000001/",
        "http://0/",
        "http://0.0.0.0/",
        "http://localhost/",
        "http://localhost./",
        "http://LOCALHOST/",
        "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/",
        "http://１２７.０.０.１/",
        "http://127。0。0。1/",
        "http://[::1]/",
        "http://[::]/",
        "http://[0:0:0:0:0:ffff:7f00:1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[::127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://[64:ff9b:1::1]/",
        "http://[2002:7f00:1::]/",
        "http://[2001:0:7f00:1::]/",
        "http://[fe80::1]/",
        "http://[fe80::1%25lo]/",
        "http://[fc00::1]/",
        "http://[fd00:ec2::254]/",
        "http://[ff02::1]/",
        "http://[2001:db8::1]/",
        "http://10.1.2.3/",
        "http://172.16.0.1/",
        "http://192.168.1.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://100.100.100.200/",
        "http://168.63.129.16/",
        "http://192.0.0.192/",
        "http://192.88.99.1/",
        "http://[3fff::1]/",
        "http://[fec0::1]/",
        "http://198.18.0.1/",
        "http://224.0.0.1/",
        "http://240.0.0.1/",
        "http://255.255.255.255/",
        "https://127.0.0.1/",
        "http://127.0.0.1:6379/",
    ],
)
def test_addresses_that_are_not_public(web: Web, url: str) -> None:
    assert refused(web, url) in (
        "the picture is not at a public address",
        "the picture has no valid http(s) URL",
    )
    assert web.reached == []


@pytest.mark.parametrize(
    "url",
    [
        "ftp://site.example/",
        "gopher://site.example/",
        "file:///etc/passwd",
        "//site.example/",
        "http:/site.example",
        "http:///cat.png",
        "http://",
        "http://user:secret@site.example/",
        "http://site.example@127.0.0.1/",
        "http://127.0.0.1\\@site.example/",
        "http://site.example\t/",
        "http://site.example/\r\nX: y",
        "http://site.example:0/",
        "http://site.example:99999/",
        "http://site.example:x/",
        "http://[site.example]/",
        "http://si te.example/",
        "http://site.example%00.evil/",
        "http://" + "a" * 300 + ".example/",
        "http://site.example/" + "a" * 9000,
    ],
)
def test_urls_that_are_none(web: Web, url: str) -> None:
    assert refused(web, url) == "the picture has no valid http(s) URL"
    assert web.reached == []


@pytest.mark.parametrize("addresses", [["10.0.0.1"], [PUBLIC, "127.0.0.1"], ["rubbish"], []])
def test_a_name_with_one_private_address_is_refused_whole(web: Web, addresses: list[str]) -> None:
    web.names["mixed.example"] = [addresses]
    assert refused(web, "http://mixed.example/") == "the picture is not at a public address"
    assert web.reached == []


def test_which_names_there_are_inside_is_not_told(web: Web) -> None:
    """One that leads to a private address, and one that there is not, are answered alike."""

    async def unknown(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    web.names["inner.example"] = [["192.168.0.9"]]
    told = {refused(web, "http://inner.example/")}
    told.add(refused(web, "http://nobody.example/"))
    with pytest.raises(ApiError) as caught:
        run_async(Fetcher(1000, 1, unknown, web.connect).fetch("http://nobody.example/"))
    assert told == {caught.value.detail}


def test_a_name_that_changes_its_address_is_asked_once(web: Web) -> None:
    """DNS rebinding: public when it is checked, loopback when it is connected to."""
    web.names["rebinding.example"] = [[PUBLIC], ["127.0.0.1"]]
    assert web.fetch("http://rebinding.example/cat.png") == PICTURE
    assert web.reached == [(PUBLIC, 80)]
    assert refused(web, "http://rebinding.example/cat.png").endswith("public address")


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://127.0.0.1/", "public address"),
        ("http://169.254.169.254/latest/meta-data/", "public address"),
        ("//localhost/", "public address"),
        ("http://[::ffff:127.0.0.1]/", "public address"),
        ("http://inner.example/", "public address"),
        ("file:///etc/passwd", "valid http(s) URL"),
        ("gopher://site.example/", "valid http(s) URL"),
        ("http://u:p@site.example/", "valid http(s) URL"),
        ("http://[x/", "no valid URL"),
        ("/loop", "more than 3 redirects"),
    ],
)
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary"])
def test_redirects_are_checked_again(web: Web, location: str, reason: str, status: str) -> None:
    web.names["inner.example"] = [["192.168.0.9"]]
    web.answers["/loop"] = response(b"", status, location=location)
    assert reason in refused(web, "http://site.example/loop")
    assert {address for address, _ in web.reached} == {PUBLIC}


def test_a_good_redirect_is_followed(web: Web) -> None:
    web.names["other.example"] = [["1.1.1.1"]]
    web.answers["/old"] = response(b"", "302 Found", location="http://other.example/cat.png")
    assert web.fetch("http://site.example/old") == PICTURE
    assert web.reached == [(PUBLIC, 80), ("1.1.1.1", 80)]


def _endless(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")


def _trickling(start: bytes) -> Callable[[socket.socket], None]:
    def send(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(b"x")
            threading.Event().wait(0.05)

    return send


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (response(b"x" * 100_001), "more than 100,000 bytes"),
        (response(b"x", content_length="9" * 15), "more than 100,000 bytes"),
        (_endless, "more than 100,000 bytes"),
        (_trickling(b"HTTP/1.1 200 OK\r\nx: "), "within 0.5 seconds"),
        (_trickling(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n"), "within 0.5 seconds"),
        (response(b"\x1f\x8b", content_encoding="gzip"), "compressed"),
        (response(b"no", "404 Not Found"), "status 404"),
        (response(b"no", "500 Oh"), "status 500"),
        (b"", "cannot be fetched"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "cannot be fetched"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort", "cannot be fetched"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 30_000 + b"\r\n", "cannot be fetched"),
    ],
)
def test_servers_that_mean_ill(web: Web, answer: Any, reason: str) -> None:
    web.answers["/x"] = answer
    seconds = 0.5 if "seconds" in reason else 600
    assert reason in refused(web, "http://site.example/x", seconds=seconds)


def test_public_addresses_are_public() -> None:
    for address in (PUBLIC, "1.1.1.1", "2606:4700::1111", "64:ff9b::101:101", "::ffff:8.8.8.8"):
        assert is_public(address), address


def test_in_the_server_only_where_it_is_allowed(
    web: Web, tiny_engine: Engine, tiny_server: Running
) -> None:
    url = "http://site.example/cat.png"
    for scheme in (url, url.upper(), "https://site.example/cat.png"):
        error = tiny_server.chat([image_part(scheme)]).error
        assert error["code"] == "image_source_not_allowed"
    assert web.reached == []
    with running(tiny_engine, web.fetcher(), allow_image_urls=True) as server:
        # A model without eyes says so, and only once the picture is there.
        assert "text only" in server.chat([image_part(url)]).error["message"]
        assert web.reached == [(PUBLIC, 80)]
        error = server.chat([image_part("http://127.0.0.1:1/x")]).error
        assert error["message"] == "the picture is not at a public address"
        # Their bytes count together, as if they had come with the request.
        web.answers["/big.png"] = response(PICTURE + bytes(40_000))
        parts = [image_part("http://site.example/big.png")] * 5
        with running(
            tiny_engine, web.fetcher(), allow_image_urls=True, max_body_bytes=100_000
        ) as s:
            reply = s.chat(parts)
        assert reply.error["message"] == "the request's pictures have more than 100,000 bytes"
        assert web.reached[1:] == [(PUBLIC, 80)] * 3
        del web.reached[1:]
        # Nothing is fetched for a request that is refused anyway.
        error = server.chat([image_part(url), image_part("file:///etc/passwd")]).error
        assert error["code"] == "image_source_not_allowed"
        assert len(web.reached) == 1
        assert server.chat([image_part(data_uri(PICTURE))]).status == 400
