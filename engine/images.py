"""Whatever an app calls a picture becomes one decoded RGB picture, or an error with the reason."""

import binascii
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import ExifTags, Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from engine.heic import heic_reader, is_heic
from vision_add_ons.errors import ImageError

ImageSource = os.PathLike | str | bytes | bytearray | memoryview | Image.Image

# Image.open would try some fifty formats, among them ones that start other programs (EPS), and
# would print its own warning about large pictures before ImageLimits could be asked.
_FORMATS: tuple[tuple[re.Pattern[bytes], type[ImageFile]], ...] = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    (re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    (re.compile(rb"GIF8[79]a"), GifImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImageFile),
    (re.compile(rb"....ftyp(avi[fs]|m[is]f1)", re.DOTALL), AvifImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImageFile),
    (re.compile(rb"BM"), BmpImageFile),
    (re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"), Jpeg2KImageFile),
)
_FORMAT_NAMES = "PNG, JPEG, GIF, WebP, AVIF, TIFF, BMP or JPEG 2000"

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_OPAQUE_MODES = {"RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
_MAYBE_TRANSPARENT_MODES = {"1", "L", "P", "RGB"}  # by a transparent colour or palette
_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}
_WIDE_GREY_MODES = {"I", "I;16", "I;16L", "I;16B", "I;16N"}


@dataclass(frozen=True)
class ImageLimits:
    """The largest encoded picture, in bytes, and the largest decoded one, in pixels."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 80_000_000  # from 89 million on, Pillow warns while it decodes some formats


DEFAULT_LIMITS = ImageLimits()


def shrunk(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """The size of a picture whose longer side becomes `longest` pixels, if it is longer."""
    scale = min(1.0, longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


class LoadedPicture:
    """One decoded picture. Equal pictures, by size and pixels, are equal; safe between threads."""

    def __init__(
        self,
        pixels: Image.Image,
        decode: Callable[[], Image.Image] | None = None,
        encoded: bytes | None = None,
        source: "LoadedPicture | None" = None,
    ) -> None:
        """`pixels` is in mode RGB; `decode` makes it again, or is None if nothing can.

        `encoded` is the file that it was decoded from, if there was one, and `source` the picture
        that it was shrunk from.
        """
        if not isinstance(pixels, Image.Image) or pixels.mode != "RGB":
            raise ImageError("a loaded picture is a PIL image in mode RGB; load_picture makes it")
        self.size = pixels.size
        """Width and height in pixels, upright."""
        content = hashlib.sha256(b"%d %d\n" % pixels.size)
        content.update(pixels.tobytes())
        self.digest = content.hexdigest()
        """SHA-256 of the size and the pixels."""
        self._pixels: Image.Image | None = pixels
        self._decode = decode
        self._encoded = encoded
        self._source = source
        self._within: dict[int, LoadedPicture] = {}

    def __reduce__(self) -> tuple[type["LoadedPicture"], tuple[Image.Image]]:
        """To another process it goes by its pixels: what decodes it again is of this one."""
        return LoadedPicture, (self.pixels(),)

    def pixels(self) -> Image.Image:
        """The picture in mode RGB; shared, so not to be changed. Decodes it after `release`."""
        pixels = self._pixels
        if pixels is None:
            assert self._decode is not None
            pixels = self._pixels = self._decode()
        return pixels

    def release(self) -> None:
        """Drop the decoded pixels, if there is something to decode them from again."""
        if self._decode is not None:
            self._pixels = None

    def encoded(self) -> bytes:
        """A file that holds the picture: the one it came from, else a PNG."""
        if self._encoded is not None:
            return self._encoded
        png = BytesIO()
        self.pixels().save(png, "PNG")
        self.release()
        return png.getvalue()

    def within(self, longest: int | None) -> "LoadedPicture":
        """The picture with its longer side at most `longest` pixels; itself if it is already.

        Bicubic, with the sides' ratio kept as far as whole pixels allow. Made once: every turn
        of a conversation asks for it again. Raises `ImageError` for what is no number of pixels.
        """
        if longest is not None and (type(longest) is not int or longest < 1):
            raise ImageError("a picture's longer side is a number of pixels, at least 1")
        if longest is None or max(self.size) <= longest:
            return self
        return self._within.get(longest) or self._within.setdefault(longest, self._shrunk(longest))

    def _shrunk(self, longest: int) -> "LoadedPicture":
        def decode() -> Image.Image:
            small = self.pixels().resize(shrunk(self.size, longest), Image.Resampling.BICUBIC)
            self.release()
            return small

        return LoadedPicture(decode(), decode, source=self)

    @property
    def bytes_held(self) -> int:
        """What it takes of memory, in bytes: with its file, or that of the picture that it was
        shrunk from. A file may be large however few its pixels are."""
        source = 0 if self._source is None else self._source.bytes_held
        pixels = 3 * self.size[0] * self.size[1]
        return source + (pixels if self._encoded is None else len(self._encoded))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LoadedPicture) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"<LoadedPicture {self.size[0]}x{self.size[1]} {self.digest[:12]}>"


def load_pictures(sources: Any) -> tuple[LoadedPicture, ...]:
    """Read several pictures, or a single one that stands alone; None is no picture.

    Raises `ImageError`, also for what is no sequence of pictures.
    """
    if sources is None:
        return ()
    single = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, LoadedPicture)
    if isinstance(sources, single):
        sources = (sources,)
    if not isinstance(sources, Iterable) or isinstance(sources, np.ndarray | Mapping):
        raise ImageError(f"pictures come as a list, not as {type(sources).__name__}")
    with _as_image_error("the pictures cannot be read"):
        return tuple(load_picture(source) for source in sources)


def load_picture(
    source: "ImageSource | LoadedPicture", limits: ImageLimits = DEFAULT_LIMITS
) -> LoadedPicture:
    """Read and decode a picture: the first frame, upright, on white where it is transparent.

    A `LoadedPicture` is returned as it is. A str is a data URI, the path of a file, or base64.
    Colour profiles are not applied. Raises `ImageError` if the picture cannot be read, is damaged,
    or exceeds `limits`.
    """
    if not isinstance(limits, ImageLimits):
        raise ImageError(f"limits must be ImageLimits, not {type(limits).__name__}")
    if isinstance(source, LoadedPicture):
        return source
    with _as_image_error("the picture cannot be read"):
        if isinstance(source, Image.Image):
            return LoadedPicture(_upright_rgb(source, "the PIL image", limits))
        name, encoded = _encoded(source, limits)
        decode = partial(_decode, encoded, name, limits)
        return LoadedPicture(decode(), decode, encoded)


def _encoded(source: ImageSource, limits: ImageLimits) -> tuple[str, bytes]:
    """What to call the picture in errors, and its encoded bytes."""
    if isinstance(source, bytes | bytearray | memoryview):
        name = "the image data"
        _check_bytes(memoryview(source).nbytes, name, limits)
        return name, bytes(source)
    if isinstance(source, os.PathLike):
        path = os.fspath(source)
        return _shown(path), _read_file(path, limits)
    if not isinstance(source, str):
        raise ImageError(
            "a picture must be a path, bytes, a PIL image, a data URI or base64, not "
            f"{type(source).__name__}"
        )
    if source[:5].lower() == "data:":
        return "the data URI", _read_data_uri(source, limits)
    if re.match("https?://", source, re.IGNORECASE):
        raise ImageError(
            f"{_shown(source)} is a web address; the engine fetches nothing: give the file instead"
        )
    try:
        _stat(source)
    except (OSError, ValueError) as missing:
        return "the base64 text", _read_base64_text(source, missing, limits)
    return _shown(source), _read_file(source, limits)


def _read_file(path: str | bytes, limits: ImageLimits) -> bytes:
    with _as_image_error(f"{_shown(path)} cannot be read"):
        status = _stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{_shown(path)} is a folder, not a picture")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{_shown(path)} is a pipe, socket or device, not a file")
        if status.st_size == 0:  # also what blocks on reading in /proc and /sys
            raise ImageError(f"{_shown(path)} is empty")
        _check_bytes(status.st_size, _shown(path), limits)
        with open(path, "rb") as file:
            return file.read(status.st_size)


def _stat(path: str | bytes) -> os.stat_result:
    if "\0" in os.fsdecode(path):  # each Python says it in other words
        raise ValueError("a path has no null byte")
    return os.stat(path)


def _read_data_uri(uri: str, limits: ImageLimits) -> bytes:
    header, comma, payload = uri[len("data:") :].partition(",")
    media_type, *parameters = header.lower().split(";")
    if not comma:
        raise ImageError("the data URI has no comma between its header and its data")
    if not media_type.strip().startswith("image/"):
        raise ImageError(f"the data URI is not of a type image/...: {_shown(media_type)}")
    with _as_image_error("the data URI cannot be read"):
        data = unquote_to_bytes(payload)
        if parameters and parameters[-1].strip() == "base64":
            return _from_base64(data, "the data URI", limits)
        _check_bytes(len(data), "the data URI", limits)
        return data


def _read_base64_text(text: str, missing: Exception, limits: ImageLimits) -> bytes:
    """`missing` is why the text is not the path of a file."""
    try:
        encoded = _from_base64(text.encode("ascii"), "the base64 text", limits)
    except ValueError:
        encoded = b""
    if _reader(encoded) is None and not is_heic(encoded):
        raise ImageError(
            f"{_shown(text)} is neither an existing file ({_reason(missing)}) nor the base64 of a "
            f"picture ({_FORMAT_NAMES})"
        )
    return encoded


def _from_base64(text: bytes, name: str, limits: ImageLimits) -> bytes:
    """Line breaks and spaces are allowed. Raises ValueError for what is not base64."""
    text = b"".join(text.split())
    _check_bytes(len(text) // 4 * 3 - text[-2:].count(b"="), name, limits)
    return binascii.a2b_base64(text, strict_mode=True)


def _reader(encoded: bytes) -> type[ImageFile] | None:
    return next((reader for start, reader in _FORMATS if start.match(encoded)), None)


def _decode(encoded: bytes, name: str, limits: ImageLimits) -> Image.Image:
    if not encoded:
        raise ImageError(f"{name} is empty")
    reader = heic_reader(name) if is_heic(encoded) else _reader(encoded)
    if reader is None:
        raise ImageError(f"{name} is not a picture that can be read ({_FORMAT_NAMES})")
    with _as_image_error(f"{name} is a damaged or unsupported {reader.format} picture"):
        return _upright_rgb(reader(BytesIO(encoded)), name, limits)


def _upright_rgb(image: Image.Image, name: str, limits: ImageLimits) -> Image.Image:
    """A new picture in mode RGB that shares nothing with `image`, nor carries its metadata."""
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels: {width}x{height}")
    if width * height > limits.max_pixels:
        raise ImageError(
            f"{name} has {width}x{height} pixels, over the limit of {limits.max_pixels:,} pixels"
        )
    image.load()
    orientation = _orientation(image)  # before the conversion, which drops it
    if image.mode in _WIDE_GREY_MODES:
        image = _from_wide_grey(image, name)
    elif image.mode not in _OPAQUE_MODES | _MAYBE_TRANSPARENT_MODES | _ALPHA_MODES:
        raise ImageError(f"{name} has pixels of mode {image.mode}; convert it to RGB or grey first")
    if image.mode not in _OPAQUE_MODES and image.has_transparency_data:
        image = _on_white(image)
    else:
        image = image.convert("RGB")
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    image.info.clear()
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block tells nothing, and the picture is still a picture
        return 1


def _from_wide_grey(image: Image.Image, name: str) -> Image.Image:
    """Grey of 16 bits in 8; Pillow's own conversion cuts everything above 255 off."""
    values = np.asarray(image).astype(np.int32)
    if ((values < 0) | (values > 0xFFFF)).any():
        raise ImageError(f"{name} has grey values outside 0..65535; scale them to 16 or 8 bits")
    grey = ((values + 128) // 257).astype(np.uint8)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")  # Pillow knows no way from La to RGBA
    rgba = image.convert("RGBA")
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba)
    return white


def _check_bytes(count: int, name: str, limits: ImageLimits) -> None:
    if count > limits.max_bytes:
        raise ImageError(f"{name} has {count:,} bytes, over the limit of {limits.max_bytes:,}")


@contextmanager
def _as_image_error(problem: str) -> Iterator[None]:
    """Image libraries raise anything from OSError to IndexError on damaged input."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{problem}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    text = _cut(" ".join(text.split()), 200)
    if isinstance(error, SyntaxError):  # what Pillow raises about a header, in its own words
        return f"its header is incomplete, unsupported or says 0 pixels ({text})"
    return text


def _shown(text: str | bytes) -> str:
    return _cut(repr(text[:1000]), 100)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + "..."
