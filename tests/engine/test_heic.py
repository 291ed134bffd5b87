"""HEIC pictures: named where they cannot be read, and read like others where they can."""

import base64
import importlib.util
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from engine.heic import is_heic
from engine.images import ImageLimits, load_picture
from vision_add_ons.errors import ImageError

INSTALLED = importlib.util.find_spec("pillow_heif") is not None


def start(main: bytes, *others: bytes) -> bytes:
    """The first box of a file with these brands, and something behind it."""
    box = b"ftyp" + main + bytes(4) + b"".join(others)
    return (len(box) + 4).to_bytes(4, "big") + box + b"\0\0\0\x10metaheicheic"


@pytest.mark.parametrize(
    ("content", "heic"),
    [
        (start(b"heic", b"mif1", b"heic"), True),
        (start(b"heix", b"mif1"), True),
        (start(b"hevc", b"msf1"), True),
        (start(b"mif1", b"mif1", b"heic"), True),
        (start(b"mif1", b"avif", b"heic"), False),
        (start(b"mif1", b"avif"), False),
        (start(b"mif1"), False),
        (start(b"avif", b"mif1", b"heic"), False),
        (start(b"mp42", b"heic"), False),
        (b"\xff\xff\xff\xffftypmif1", False),
        (b"\0\0\0\0ftypheic", True),
        (b"heic", False),
        (b"", False),
    ],
)
def test_the_brands_tell(content: bytes, heic: bool) -> None:
    assert is_heic(content) == heic


@pytest.mark.skipif(INSTALLED, reason="pillow-heif is installed: such pictures are read")
def test_it_is_named_where_nothing_reads_it(tmp_path: Path) -> None:
    content = start(b"heic", b"mif1", b"heic")
    file = tmp_path / "IMG_0001.HEIC"
    file.write_bytes(content)
    for source in (content, file, base64.b64encode(content).decode()):
        with pytest.raises(ImageError, match=r"is a HEIC picture: pip install 'sightline\[heic\]'"):
            load_picture(source)


def encoded(image: Image.Image, **options: object) -> bytes:
    heif = pytest.importorskip("pillow_heif")
    file = BytesIO()
    heif.from_pillow(image).save(file, quality=-1, **options)
    return file.getvalue()


def halves() -> Image.Image:
    """Red above blue, wider than it is high."""
    image = Image.new("RGB", (64, 32), "red")
    image.paste("blue", (0, 16, 64, 32))
    return image


def near(colour: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(colour, other, strict=True)) < 24


def test_it_is_read() -> None:
    picture = load_picture(encoded(halves()))
    assert picture.size == (64, 32)
    assert near(picture.pixels().getpixel((30, 4)), (255, 0, 0))
    assert near(picture.pixels().getpixel((30, 28)), (0, 0, 255))
    before = picture.pixels().tobytes()
    picture.release()
    assert picture.pixels().tobytes() == before
    assert ".heic" not in Image.registered_extensions()


def test_it_is_turned_upright_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    picture = load_picture(encoded(halves(), exif=exif.tobytes()))
    assert picture.size == (32, 64)
    assert near(picture.pixels().getpixel((4, 30)), (0, 0, 255))
    assert near(picture.pixels().getpixel((28, 30)), (255, 0, 0))


def test_it_is_on_white_where_it_is_transparent() -> None:
    image = halves().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 64, 16))
    assert near(load_picture(encoded(image)).pixels().getpixel((30, 4)), (255, 255, 255))


def test_limits_and_damage_are_those_of_every_picture() -> None:
    content = encoded(halves())
    with pytest.raises(ImageError, match="64x32 pixels, over the limit"):
        load_picture(content, ImageLimits(max_pixels=1000))
    with pytest.raises(ImageError, match="bytes, over the limit"):
        load_picture(content, ImageLimits(max_bytes=100))
    with pytest.raises(ImageError, match="damaged or unsupported HEIF picture"):
        load_picture(content[: len(content) // 2])
