"""What cannot be read as an image is refused with the reason, and limits come before the work."""

import base64
import io
import os
import random
import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote_from_bytes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.pictures import ASTRONAUT, PHOTOS, photo, rgb, saved

from engine.images import ImageLimits, load_picture
from vision_add_ons.errors import ImageError


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header claims a size that its pixels do not have."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(data))
        + png_chunk(b"IEND", b"")
    )


def refused(source: object, reason: str, limits: ImageLimits | None = None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=reason) as caught:
            load_picture(source, *([limits] if limits else []))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500


PNG = saved(photo(), "PNG")


JPEG = saved(photo(), "JPEG")


PNG_TEXT = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (3, "not int"),
        (None, "not NoneType"),
        ([ASTRONAUT], "not list"),
        (np.zeros((4, 4, 3), np.uint8), "not ndarray"),
        (b"", "empty"),
        (b"hello", "not a picture that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture that can be read"),
        (PNG[:8], "damaged or unsupported PNG"),
        (PNG[:100], "damaged or unsupported PNG"),
        (PNG[: len(PNG) // 2], "truncated"),
        (JPEG[:-200], "truncated"),
        (JPEG[:3], "damaged or unsupported JPEG"),
        (b"GIF89a", "damaged or unsupported GIF"),
        (b"BM", "damaged or unsupported BMP"),
        (b"II*\0", "damaged or unsupported TIFF"),
        (b"RIFF\0\0\0\0WEBP", "damaged or unsupported WEBP"),
        (b"\0\0\0\x20ftypavif", "damaged or unsupported AVIF"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "damaged or unsupported JPEG2000"),
        (png_of_size(0, 5), "0 pixels"),
        (png_of_size(5, 5), "damaged or unsupported PNG"),
        (png_of_size(9000, 9000), "9000x9000 pixels, over the limit of 80,000,000"),
        (png_of_size(10000, 10000), "over the limit"),
        (png_of_size(60000, 60000), "over the limit"),
        (Image.new("RGB", (0, 5)), "no pixels"),
        (Image.new("F", (5, 5)), "mode F"),
        ("", "neither an existing file"),
        ("no such picture.png", "neither an existing file .*No such file.* nor the base64"),
        ("nul\0byte.png", "neither an existing file .*null byte"),
        ("\ud800.png", "neither an existing file"),
        ("x" * 5000 + ".png", "neither an existing file .*too long"),
        ("aGVsbG8=", "nor the base64"),
        (PNG_TEXT[:-3], "nor the base64"),
        (PNG_TEXT + "!", "nor the base64"),
        ("*" + PNG_TEXT, "nor the base64"),
        (base64.b64encode(PNG[:1000]).decode(), "Truncated"),
        (Path("no such picture.png"), "No such file"),
        (Path("nul\0byte.png"), "null byte"),
        (Path("x" * 5000), "too long"),
        (PHOTOS, "folder"),
        (str(PHOTOS), "folder"),
        (Path(), "folder"),
        (os.devnull, "device"),
        (PHOTOS / "README.txt", "README.txt' is not a picture that can be read"),
        ("https://example.com/a.png", "fetches nothing"),
        ("HTTP://example.com/a.png", "fetches nothing"),
        ("data:", "no comma"),
        ("data:image/png;base64", "no comma"),
        ("data:,", "not of a type image"),
        ("data:text/plain;base64," + PNG_TEXT, "text/plain"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,????", "data URI cannot be read"),
        ("data:image/png;base64," + PNG_TEXT[:-3], "data URI cannot be read"),
        ("data:image/png;base64,aGVsbG8=", "not a picture that can be read"),
        ("data:image/png," + PNG_TEXT, "not a picture that can be read"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_bad_input_is_refused_with_the_reason(source: object, reason: str) -> None:
    refused(source, reason)


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "empty")
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "pipe")
    refused(str(tmp_path / "pipe.png"), "pipe")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone.png")
    refused(tmp_path / "dangling.png", "No such file")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    refused(tmp_path / "loop.png", "symbolic links")
    (tmp_path / "line\nbreak.png").write_bytes(b"no")
    refused(tmp_path / "line\nbreak.png", r"line\\nbreak")


def test_an_unreadable_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(ImageError, match=r"astronaut.png' cannot be read: Permission denied"):
        load_picture(ASTRONAUT)


def test_a_closed_pil_image() -> None:
    image = Image.open(ASTRONAUT)
    image.close()
    refused(image, "cannot be read")


def test_a_damaged_pil_image() -> None:
    refused(Image.open(io.BytesIO(PNG[: len(PNG) // 2])), "truncated")


@pytest.mark.parametrize("error", [MemoryError(), OverflowError("x"), RecursionError("y")])
def test_whatever_a_decoder_raises(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    image = photo()
    monkeypatch.setattr(image, "load", fail)
    refused(image, f"cannot be read: {str(error) or 'MemoryError'}")


def test_limits_are_inclusive(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(PNG)
    sources = (PNG, path, str(path), PNG_TEXT, f"data:image/png;base64,{PNG_TEXT}")
    for source in (*sources, "data:image/png," + quote_from_bytes(PNG)):
        assert load_picture(source, ImageLimits(max_bytes=len(PNG))).size == (48, 48)
        refused(source, "bytes, over the limit", ImageLimits(max_bytes=len(PNG) - 1))
    for source in (*sources, photo()):
        assert load_picture(source, ImageLimits(max_pixels=48 * 48)).size == (48, 48)
        refused(source, "48x48 pixels, over the limit", ImageLimits(max_pixels=48 * 48 - 1))


def test_limits_come_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sparse.png"
    path.write_bytes(PNG)
    os.truncate(path, 2**33)
    refused(path, "8,589,934,592 bytes, over the limit of 67,108,864")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    refused(PNG, "over the limit", ImageLimits(max_pixels=100))
    monkeypatch.setattr("binascii.a2b_base64", lambda *_, **__: pytest.fail("decoded"))
    refused(PNG_TEXT, "over the limit", ImageLimits(max_bytes=100))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "JPEG2000"])
@pytest.mark.parametrize("pillows_limit", [2000, 1000])  # 48x48 is over one, and twice the other
def test_pillows_own_limit_has_no_say(
    format: str, pillows_limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = saved(photo(), format)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows_limit)
    if (format, pillows_limit) == ("WEBP", 1000):
        with suppress(ImageError):  # Pillow 13 is the first whose reader of these asks by itself
            assert load_picture(data).size == (48, 48)
            return
        refused(data, "exceeds limit")
        return
    filters = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert load_picture(data).size == (48, 48)
    assert not caught
    assert pillows_limit == Image.MAX_IMAGE_PIXELS
    assert warnings.filters == filters


def test_the_default_limit_is_below_pillows_warning() -> None:
    assert ImageLimits().max_pixels < Image.MAX_IMAGE_PIXELS


def _samples() -> list[bytes]:
    small = photo(24)
    exif = Image.Exif()
    exif[0x0112] = 6
    translucent = small.convert("RGBA")
    translucent.putalpha(100)
    wide = Image.fromarray(np.arange(576, dtype=np.uint16).reshape(24, 24) * 100)
    return [
        saved(small, "PNG", exif=exif),
        saved(small.convert("P"), "PNG", transparency=3),
        saved(wide, "PNG"),
        saved(small, "JPEG", exif=exif),
        saved(small.convert("CMYK"), "JPEG", progressive=True),
        saved(small, "GIF", save_all=True, append_images=[photo(24).rotate(90)]),
        saved(translucent, "WEBP"),
        saved(small, "WEBP", exif=exif, lossless=True),
        saved(small, "TIFF", exif=exif),
        saved(small, "TIFF", compression="tiff_lzw"),
        saved(wide, "TIFF", compression="tiff_adobe_deflate"),
        saved(small, "BMP"),
        saved(small.convert("P"), "BMP"),
        saved(small, "AVIF"),
        saved(small, "JPEG2000"),
    ]


SAMPLES = _samples()


@given(
    st.integers(0, len(SAMPLES) - 1),
    st.sampled_from(["cut", "header", "any", "both"]),
    st.randoms(),
)
@settings(max_examples=600)
def test_damage_gives_a_picture_or_an_image_error(which: int, how: str, rng: random.Random) -> None:
    data = bytearray(SAMPLES[which])
    for _ in range(0 if how == "cut" else rng.randint(1, 8)):
        place = rng.randrange(min(len(data), 200 if how == "header" else len(data)))
        data[place] ^= 1 << rng.randrange(8)
    if how in ("cut", "both"):
        del data[rng.randrange(len(data)) :]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata, which Pillow skips
        try:
            picture = load_picture(data, ImageLimits(max_pixels=1_000_000))
        except ImageError:
            return
        picture.release()
        assert load_picture(picture.pixels()) == picture
    assert rgb(picture).size == 3 * picture.size[0] * picture.size[1]
