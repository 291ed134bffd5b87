"""What may be sent as a picture: bombs, wrecks and chimeras, and files that are not to be read."""

import base64
import os
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.serving import Running, Watched, data_uri, encoded, image_part, run_async, running

from engine import Engine, load_picture
from engine.prompts.builder import Prompt
from engine.server import Settings
from engine.server.fetch import Fetcher
from engine.server.pictures import PictureReader
from engine.server.turns import Shown


def chunk(kind: bytes, data: bytes) -> bytes:
    checked = kind + data
    return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))


def png(width: int, height: int, data: bytes) -> bytes:
    """A PNG file that claims a size, and holds what it holds."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


GOOD = encoded()
BOMB = png(50_000, 50_000, bytes(1_000_000))  # 7.5 GB, decoded
WRECKS = {
    "a bomb of pixels": BOMB,
    "no pixels": png(0, 10, b""),
    "a size that is no number": png(2**31 - 1, 2**31 - 1, b""),
    "half a file": GOOD[: len(GOOD) // 2],
    "a head alone": GOOD[:8],
    "less data than pixels": png(100, 100, b"x"),
    "one byte": b"\x89",
    "nothing": b"",
    "a script": b"#!/bin/sh\nid\n",
    "a page": b"<html><script>alert(1)</script>",
    "a drawing that may load others": b"<svg xmlns='http://www.w3.org/2000/svg'></svg>",
    "PostScript, which runs a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "a document": b"%PDF-1.7\n",
    "an archive": b"PK\x03\x04" + bytes(60),
    "another start on the rest of a picture": b"GIF89a" + GOOD[6:],
    "half a JPEG": encoded(kind="JPEG")[:200],
    "a TIFF that points at itself": b"II*\0\x08\0\0\0\1\0\0\1\3\0\1\0\0\0\x08\0\0\0\x08\0\0\0",
}


@pytest.mark.parametrize("what", WRECKS)
def test_what_is_no_sound_picture_is_refused(tiny_server: Running, what: str) -> None:
    for url in (data_uri(WRECKS[what]), base64.b64encode(WRECKS[what]).decode() or "data:,"):
        error = tiny_server.chat([image_part(url)]).error
        assert error["code"] == "invalid_image"
        assert "text only" not in error["message"]  # refused before the model is asked


@pytest.mark.parametrize("tail", [b"PK\x03\x04", b"<script>alert(1)</script>", b"#!/bin/sh\n"])
def test_a_picture_with_something_behind_it_is_the_picture(
    tiny_server: Running, tail: bytes
) -> None:
    """A polyglot: nothing but the picture in it is ever looked at."""
    assert "text only" in tiny_server.chat([image_part(data_uri(GOOD + tail))]).error["message"]


@pytest.mark.parametrize(
    "url",
    [
        "/etc/passwd",
        "../../etc/passwd",
        "~/picture.png",
        "picture.png",
        "file:///etc/passwd",
        "file:/etc/passwd",
        "FILE:///etc/passwd",
        "file:picture.png",
        "file://localhost/etc/passwd",
        "ftp://site.example/x.png",
        "blob:http://127.0.0.1/x",
        "javascript:alert(1)",
        "jar:file:///x!/y",
        "data:text/html;base64,AAAA",
        "data:image/png;base64,%%%",
        "data:image/png",
        "data:",
        " data:/../picture.png",
        "\tdata:image/png;base64,AAAA",
        "d\u0430ta:image/png;base64,AAAA",
        "C:\\picture.png",
        "\\\\server\\share\\x.png",
        "/dev/zero",
        "/proc/self/environ",
        "AAAA",
        "AAA",
        "\u0000",
        "picture.png\u0000.png",
    ],
)
def test_no_text_reaches_a_file(
    tiny_server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    (tmp_path / "picture.png").write_bytes(GOOD)
    (tmp_path / " data:").mkdir()
    monkeypatch.chdir(tmp_path)  # where a relative path would be found
    error = tiny_server.chat([image_part(url)]).error
    assert error["code"] in ("invalid_image", "image_source_not_allowed")
    assert "text only" not in error["message"]


def test_limits_are_answered_before_decoding(tiny_engine: Engine) -> None:
    limits = {"max_images": 2, "max_pixels": 1200, "max_image_bytes": 5000}
    with running(tiny_engine, **limits) as server:
        good = image_part(data_uri(GOOD))
        assert "text only" in server.chat([good, good]).error["message"]
        assert server.chat([good] * 3).error["code"] == "too_many_images"
        error = server.chat([image_part(data_uri(encoded((40, 31))))]).error
        assert "over the limit of 1,200 pixels" in error["message"]
        for url in (data_uri(GOOD + bytes(5000)), base64.b64encode(GOOD + bytes(5000)).decode()):
            error = server.chat([image_part(url)]).error
            assert "5,000" in error["message"]


def test_low_detail_is_a_smaller_picture() -> None:
    settings = Settings()
    reader = PictureReader(settings, Fetcher(settings.max_image_bytes, 1))
    url = data_uri(encoded((600, 300)))
    wanted: list[Any] = [None, "auto", "high", "low"]
    with ThreadPoolExecutor(1) as threads:
        images = [Shown(url, detail == "low") for detail in wanted]
        pictures = run_async(reader.read(images, threads))
    assert [picture.size for picture in pictures] == [(600, 300)] * 3 + [(512, 256)]


# --- a folder that may be read ----------------------------------------------------------------


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`media/` with pictures and traps, and beside it what is not to be read."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.png").write_bytes(GOOD)
    (outside / "media-too").mkdir()
    (outside / "media-too" / "secret.png").write_bytes(GOOD)
    root = outside / "media"
    (root / "inner").mkdir(parents=True)
    (root / "cat.png").write_bytes(GOOD)
    (root / "inner" / "a cat.png").write_bytes(GOOD)
    (root / "notes.txt").write_text("not a picture")
    (root / "big.png").write_bytes(GOOD + bytes(50_000))
    (root / "link.png").symlink_to(outside / "secret.png")
    (root / "relative.png").symlink_to("../secret.png")
    (root / "up").symlink_to("..")
    (root / "etc").symlink_to("/etc")
    os.mkfifo(root / "pipe.png")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(root / "socket.png"))
    return root


@pytest.fixture(scope="module")
def media_server(tiny_engine: Engine, media: Path) -> Iterator[Running]:
    with running(tiny_engine, media_root=media, max_image_bytes=50_000) as server:
        yield server


def test_files_of_the_media_folder_are_read(media_server: Running, media: Path) -> None:
    for url in ("file:cat.png", "file:inner/a%20cat.png", f"file://{media}/cat.png"):
        assert "text only" in media_server.chat([image_part(url)]).error["message"], url


@pytest.mark.parametrize(
    "url",
    [
        "file:../secret.png",
        "file:inner/../../secret.png",
        "file:inner/../cat.png",
        "file:%2e%2e/secret.png",
        "file:..%2fsecret.png",
        "file:%252e%252e/secret.png",
        "file:./cat.png",
        "file:inner//a%20cat.png",
        "file:///etc/passwd",
        "file:/etc/passwd",
        "file:{root}-too/secret.png",
        "file:{root}/../secret.png",
        "file:{root}",
        "file:{root}/",
        "file://other{root}/cat.png",
        "file://127.0.0.1{root}/cat.png",
        "file:link.png",
        "file:relative.png",
        "file:up/secret.png",
        "file:etc/passwd",
        "file:inner",
        "file:pipe.png",
        "file:socket.png",
        "file:missing.png",
        "file:cat.png%00.png",
        "file:cat.png?x",
        "file:cat.png#x",
        "file:",
        "file:%ff",
        "file:" + "a" * 300,
        "file:" + "a/" * 3000,
    ],
)
def test_nothing_else_is(media_server: Running, media: Path, url: str) -> None:
    error = media_server.chat([image_part(url.format(root=media))]).error
    assert error["message"] == "there is no such picture in the server's media folder"


def test_files_that_are_no_pictures_or_too_large(media_server: Running) -> None:
    assert "not a picture" in media_server.chat([image_part("file:notes.txt")]).error["message"]
    assert "50,000 bytes" in media_server.chat([image_part("file:big.png")]).error["message"]
    # Only files: what was refused without a folder still is.
    assert media_server.chat([image_part("cat.png")]).error["code"] == "invalid_image"


def test_a_link_that_is_swapped_in_gains_nothing(media_server: Running, media: Path) -> None:
    """A folder becomes a link to outside while it is read: the link is never followed."""
    swapped, real, done = media / "swapped", media / "real", threading.Event()
    real.mkdir()
    (real / "secret.png").write_text("mine")

    def swap() -> None:
        while not done.is_set():
            real.rename(swapped)
            swapped.rename(real)
            swapped.symlink_to("..")
            swapped.unlink()

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(60):
            message = media_server.chat([image_part("file:swapped/secret.png")]).error["message"]
            assert "text only" not in message
    finally:
        done.set()
        thread.join()


PART = image_part(data_uri(GOOD))
TALK = ("system", "user", "assistant", "user")


@pytest.mark.parametrize("order", ["tit", "iti", "titit", "iitt"])
def test_parts_stay_in_their_order(seeing_engine: Engine, order: str) -> None:
    """In messages of every role, as the model is given them."""
    prompts: list[Prompt] = []
    watched: Any = Watched(seeing_engine, lambda answer, *_: prompts.append(answer.prompt))
    messages = []
    expected = [""]
    for i, role in enumerate(TALK):
        parts: list[Any] = []
        expected[-1] += f"{role}: "
        for j, kind in enumerate(order):
            if kind == "t":
                parts.append({"type": "text", "text": f"part {i}{j} "})
                expected[-1] += f"part {i}{j} "
            else:
                data = encoded((20 + 4 * i, 20 + 4 * j))
                parts.append(image_part(data_uri(data)))
                expected += [load_picture(data).digest, ""]
        expected[-1] += "\n"
        messages.append({"role": role, "content": parts})
    expected[-1] += "assistant: "
    with running(watched) as server:
        body = {"model": server.model, "max_tokens": 1, "messages": messages}
        assert server.ask("POST", "/v1/chat/completions", body).status == 200
    found = []
    done = 0
    for span in prompts[0].spans:
        found += [seeing_engine.detokenize(prompts[0].tokens[done : span.start])]
        found += [span.picture.digest]
        done = span.end
    assert [*found, seeing_engine.detokenize(prompts[0].tokens[done:])] == expected


def test_an_answer_sent_back_in_parts_is_as_it_is(seeing_server: Running) -> None:
    """Also where its texts together are those of an answer whose ids are known."""
    asked = {"role": "user", "content": "Hm?"}
    body: dict[str, Any] = {"model": seeing_server.model, "max_tokens": 4, "messages": [asked]}
    answer = seeing_server.ask("POST", "/v1/chat/completions", body).json
    text = answer["choices"][0]["message"]["content"]
    halves = [{"type": "text", "text": half} for half in (text[:2], text[2:])]
    for content in (text, [{"type": "text", "text": text}], halves, [*halves, PART]):
        told = [asked, {"role": "assistant", "content": content}, asked]
        reply = seeing_server.ask("POST", "/v1/chat/completions", {**body, "messages": told})
        assert reply.status == 200
    bad = [{"type": "text", "text": "half \ud800"}, PART]
    reply = seeing_server.chat(bad)
    assert (reply.status, reply.error["code"]) == (400, "invalid_prompt")
