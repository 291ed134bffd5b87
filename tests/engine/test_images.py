import base64
import hashlib
import io
import os
import pickle
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote_from_bytes

import numpy as np
import pytest
from PIL import Image
from support.pictures import ASTRONAUT, PHOTOS, photo, rgb, saved

from engine.images import load_picture
from vision_add_ons.base import Picture
from vision_add_ons.errors import ImageError

# Six pixels in two rows, no symmetry.
COLORS = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[0, 0, 0], [200, 100, 50], [255, 255, 255]]],
    dtype=np.uint8,
)


# --- where a picture comes from ---------------------------------------------------------------


def test_every_source_gives_the_same_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ASTRONAUT.read_bytes()
    text = base64.b64encode(data).decode()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a photo é.png").write_bytes(data)
    sources = {
        "path": ASTRONAUT,
        "str": str(ASTRONAUT),
        "relative": "a photo é.png",
        "bytes path": next(os.scandir(os.fsencode(tmp_path))),
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "PIL": Image.open(ASTRONAUT),
        "base64": text,
        "wrapped base64": base64.encodebytes(data).decode(),
        "data URI": f"data:image/png;base64,{text}",
        "wrong type": f"DATA:Image/JPEG;name=a;Base64,{text}",
        "quoted base64": "data:image/png;base64," + text.replace("+", "%2B").replace("=", "%3D"),
        "quoted": "data:image/png," + quote_from_bytes(data),
    }
    expected = np.asarray(Image.open(ASTRONAUT).convert("RGB"))
    for name, source in sources.items():
        picture: Picture = load_picture(source)
        assert picture.size == (512, 512), name
        assert np.array_equal(rgb(picture), expected), name
        assert picture == load_picture(ASTRONAUT), name
    assert len({load_picture(source) for source in sources.values()}) == 1


@pytest.mark.parametrize(
    "name", ["chelsea.png", "camera.png", "hubble_deep_field.jpg", "retina.jpg", "logo.png"]
)
def test_photographs(name: str) -> None:
    original = Image.open(PHOTOS / name)
    picture = load_picture(PHOTOS / name)
    assert picture.size == original.size
    if not original.has_transparency_data:
        assert np.array_equal(rgb(picture), np.asarray(original.convert("RGB")))


def test_digest_is_of_size_and_pixels() -> None:
    same = [saved(photo(), format) for format in ("PNG", "BMP", "TIFF")]
    assert len({load_picture(data).digest for data in same}) == 1
    flat = [load_picture(Image.new("RGB", size)) for size in ((2, 6), (6, 2), (3, 4), (12, 1))]
    assert len({picture.digest for picture in flat}) == 4
    changed = photo()
    changed.putpixel((3, 3), (1, 2, 3))
    assert load_picture(changed) != load_picture(photo())
    expected = hashlib.sha256(b"3 2\n" + COLORS.tobytes()).hexdigest()
    assert load_picture(Image.fromarray(COLORS)).digest == expected


def test_release_drops_what_can_be_decoded_again(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(saved(photo(), "JPEG"))
    picture = load_picture(path)
    assert picture.pixels() is picture.pixels()
    before, digest = rgb(picture).copy(), picture.digest
    path.unlink()
    picture.release()
    assert picture._pixels is None
    assert picture.size == (48, 48)
    assert picture.digest == digest
    assert np.array_equal(rgb(picture), before)


def test_a_pil_image_is_copied_and_kept() -> None:
    for mode in ("RGB", "L"):
        source = photo().convert(mode)
        before = np.asarray(source.convert("RGB")).copy()
        picture = load_picture(source)
        source.paste(0, (0, 0, 20, 20))
        picture.release()
        assert np.array_equal(rgb(picture), before)


def test_mutable_bytes_are_copied() -> None:
    data = bytearray(saved(photo(), "PNG"))
    picture = load_picture(data)
    data[:] = bytes(len(data))
    picture.release()
    assert load_picture(picture.pixels()) == picture


def test_pixels_from_many_threads() -> None:
    picture = load_picture(ASTRONAUT)
    expected = rgb(picture)
    wrong = []

    def use() -> None:
        for _ in range(5):
            picture.release()
            if not np.array_equal(np.asarray(picture.pixels()), expected):
                wrong.append(1)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- orientation, modes, transparency, frames -------------------------------------------------

# How each EXIF orientation is stored, and what makes it upright again.
ORIENTATIONS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF", "PIL"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation(orientation: int, format: str) -> None:
    stored = Image.fromarray(np.kron(COLORS, np.ones((16, 16, 1), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    data = saved(stored, "PNG" if format == "PIL" else format, exif=exif, **options.get(format, {}))
    picture = load_picture(Image.open(io.BytesIO(data)) if format == "PIL" else data)
    upright = ORIENTATIONS[orientation](np.asarray(stored))
    assert picture.size == (upright.shape[1], upright.shape[0])
    near = {"JPEG": 12, "AVIF": 60}.get(format, 0)  # lossy
    assert np.abs(rgb(picture)[8::16, 8::16] - upright[8::16, 8::16].astype(int)).max() <= near
    assert load_picture(picture.pixels()) == picture, "turned a second time"


def test_orientation_outside_the_standard_and_damaged_exif_are_ignored() -> None:
    stored = Image.fromarray(COLORS)
    exif = Image.Exif()
    exif[0x0112] = 9
    assert np.array_equal(rgb(load_picture(saved(stored, "PNG", exif=exif))), COLORS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in (b"Exif\0\0", b"Exif\0\0XX*\0\0\0\0\x08", b"Exif\0\0II*\0\xff\xff\xff\xff"):
            assert load_picture(saved(photo(), "JPEG", exif=block)).size == (48, 48)


@pytest.mark.parametrize("mode", ["RGB", "RGBX", "L", "1", "P", "CMYK", "YCbCr", "HSV"])
def test_modes_without_transparency(mode: str) -> None:
    image = photo().convert(mode)
    assert np.array_equal(rgb(load_picture(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("mode", "format"),
    [("1", "PNG"), ("L", "JPEG"), ("P", "GIF"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("P", "BMP")],
)
def test_modes_in_files(mode: str, format: str) -> None:
    data = saved(photo().convert(mode), format)
    expected = Image.open(io.BytesIO(data))
    assert expected.mode in (mode, "RGB")
    assert np.array_equal(rgb(load_picture(data)), np.asarray(expected.convert("RGB")))


def test_lab() -> None:
    lab = Image.merge("LAB", [Image.new("L", (4, 4), value) for value in (137, 208, 195)])
    assert np.abs(rgb(load_picture(lab)).astype(int) - [255, 0, 0]).max() <= 12  # about red


@pytest.mark.parametrize("kind", ["I;16", "I;16B", "I", "PNG", "TIFF", "big-endian TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 128, 129, 255, 256], [257, 32767, 32768, 65406, 65535]], np.uint16)
    image = Image.fromarray(values)
    if kind == "I":
        image = Image.fromarray(values.astype(np.int32))
    elif kind in ("I;16B", "big-endian TIFF"):
        image = Image.frombytes("I;16B", (5, 2), values.astype(">u2").tobytes())
    source = saved(image, kind[-4:].strip()) if kind[-1] in "GF" else image
    expected = np.rint(values / 257)[..., None].repeat(3, axis=2)
    assert np.array_equal(rgb(load_picture(source)), expected)
    assert expected[0, :3, 0].tolist() == [0, 0, 1]


def test_sixteen_bit_grey_with_a_transparent_value() -> None:
    image = Image.fromarray(np.array([[0, 20000, 20001]], np.uint16))
    picture = load_picture(saved(image, "PNG", transparency=20000))
    assert rgb(picture)[0, :, 0].tolist() == [0, 255, 78]


@pytest.mark.parametrize("values", [[[-1, 5]], [[5, 65536]]])
def test_grey_outside_sixteen_bits_is_refused(values: list) -> None:
    image = Image.fromarray(np.array(values, np.int32))
    for source in (image, saved(image, "TIFF")):
        with pytest.raises(ImageError, match=r"0\.\.65535"):
            load_picture(source)


def on_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    weight = alpha[..., None] / 255
    return np.rint(color * weight + 255 * (1 - weight))


@pytest.mark.parametrize(
    ("mode", "as_file"),
    [("RGBA", True), ("LA", True), *((m, False) for m in ("RGBA", "LA", "PA", "RGBa", "La"))],
)
def test_alpha_is_composited_on_white(mode: str, as_file: bool) -> None:
    alpha = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    straight = {"RGBa": "RGBA", "La": "LA"}.get(mode, mode)
    image = photo().convert({"RGBA": "RGB", "LA": "L", "PA": "P"}[straight]).convert(straight)
    image.putalpha(Image.fromarray(alpha))
    color = np.asarray(image.convert("RGB"))
    source = saved(image, "PNG") if as_file else image.convert(mode)
    # Premultiplied colours have lost their precision where they are nearly transparent.
    near = 1 if mode == straight else 2
    assert np.abs(rgb(load_picture(source)) - on_white(color, alpha)).max() <= near


def test_what_it_holds() -> None:
    """A file may be large however few its pixels are, and one that was shrunk holds its own."""
    file = io.BytesIO()
    Image.new("RGB", (60, 40)).save(file, "PNG")
    picture = load_picture(file.getvalue() + bytes(100_000))
    assert picture.bytes_held == len(file.getvalue()) + 100_000
    assert picture.within(30).bytes_held == picture.bytes_held + 3 * 30 * 20
    assert load_picture(Image.new("RGB", (60, 40))).bytes_held == 3 * 60 * 40


def test_transparent_palette_entries_and_colours() -> None:
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L")
    palette = palette.convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    one, several = saved(palette, "PNG", transparency=1), b"\xff\x00\x80"
    gif = saved(palette, "GIF", transparency=1)
    for source in (one, gif):
        expected = [[10, 20, 30], [255, 255, 255], [70, 80, 90]]
        assert rgb(load_picture(source))[0].tolist() == expected
    half = rgb(load_picture(saved(palette, "PNG", transparency=several)))[0]
    assert half[:2].tolist() == [[10, 20, 30], [255, 255, 255]]
    assert np.abs(half[2] - [162, 167, 172.0]).max() <= 1
    rgba_palette = palette.copy()
    rgba_palette.putpalette([10, 20, 30, 255, 40, 50, 60, 0, 70, 80, 90, 255], "RGBA")
    assert rgb(load_picture(rgba_palette))[0].tolist() == expected

    data = saved(Image.fromarray(COLORS), "PNG", transparency=(200, 100, 50))
    white = COLORS.copy()
    white[1, 1] = 255
    assert np.array_equal(rgb(load_picture(data)), white)
    grey = Image.fromarray(np.array([[7, 8]], np.uint8))
    assert rgb(load_picture(saved(grey, "PNG", transparency=7)))[0, :, 0].tolist() == [255, 8]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF", "MPO", "AVIF"])
def test_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "lime", "blue")]
    data = saved(frames[0], format, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert np.abs(rgb(load_picture(data)).astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize(
    "format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000"]
)
def test_formats(format: str) -> None:
    data = saved(photo(), format)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(rgb(load_picture(data)), expected)


# --- what is refused --------------------------------------------------------------------------


PNG = saved(photo(), "PNG")
JPEG = saved(photo(), "JPEG")


# --- damage -----------------------------------------------------------------------------------


def test_a_picture_goes_to_another_process(tmp_path: Path) -> None:
    """By its pixels, whatever it was decoded from."""
    Image.new("RGB", (5, 4), (1, 2, 3)).save(tmp_path / "a.png")
    picture = load_picture(tmp_path / "a.png")
    picture.release()
    again = pickle.loads(pickle.dumps(picture))
    assert (again.digest, again.size) == (picture.digest, picture.size)
    assert again == picture
