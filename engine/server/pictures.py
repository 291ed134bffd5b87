"""The pictures of a request: from data URIs and base64; from elsewhere only where it is allowed.

No text of a request is ever handed to the engine as a picture, which would take it for a path:
what is read here is bytes.
"""

import asyncio
import binascii
import re
from collections.abc import Sequence
from concurrent.futures import Executor

from engine.images import ImageLimits, LoadedPicture, load_picture
from engine.server.errors import ApiError, as_api_error
from engine.server.fetch import Fetcher
from engine.server.media import MediaRoot
from engine.server.settings import Settings
from engine.server.turns import Shown
from vision_add_ons.errors import ImageError

LOW_DETAIL = 512
"""The longer side, in pixels, of a picture that is asked for in low detail."""


class PictureReader:
    def __init__(self, settings: Settings, fetcher: Fetcher) -> None:
        self._max_images = settings.max_images
        self._max_total = settings.max_body_bytes
        self._limits = ImageLimits(settings.max_image_bytes, settings.max_pixels)
        self._fetcher = fetcher if settings.allow_image_urls else None
        root = settings.media_root
        self._media = None if root is None else MediaRoot(root)

    async def read(
        self, images: Sequence[Shown], threads: Executor, field: str = "messages"
    ) -> Sequence[LoadedPicture]:
        """Each picture decoded once, to know it, and kept as its encoded bytes.

        What is not allowed is refused before anything is fetched, and what is too large before it
        is decoded. Raises `ApiError`; `field` is the request's that shows them.
        """
        if len(images) > self._max_images:
            message = f"a request may show {self._max_images} pictures, and this one has more"
            raise ApiError(400, f"{message}: {len(images)}", "too_many_images", field)
        for image in images:
            self._check_source(image.url, field)
        loop = asyncio.get_running_loop()
        read, total = [], 0
        for image in images:
            data: str | bytes = image.url
            if _scheme(image.url) in ("http", "https"):
                assert self._fetcher is not None
                data = await self._fetcher.fetch(image.url)
            picture, size = await loop.run_in_executor(threads, self._load, data, image.small)
            read.append(picture)
            total += size
            if total > self._max_total:
                message = f"the request's pictures have more than {self._max_total:,} bytes"
                raise ApiError(400, message, "too_many_images", field)
        return read

    def _check_source(self, url: str, field: str) -> None:
        scheme = _scheme(url)
        if scheme in ("http", "https"):
            if self._fetcher is None:
                raise _not_allowed("this server fetches no pictures; send a data URI", field)
        elif scheme == "file":
            if self._media is None:
                raise _not_allowed("this server reads no files; send a data URI", field)
        elif scheme not in (None, "data"):
            raise _not_allowed("a picture comes as a data URI or as base64", field)

    def _load(self, source: str | bytes, small: bool) -> tuple[LoadedPicture, int]:
        """A picture, and the bytes of its file."""
        try:
            if isinstance(source, str) and _scheme(source) == "file":
                assert self._media is not None
                source = self._media.read(source, self._limits.max_bytes)
            elif isinstance(source, str) and _scheme(source) != "data":
                source = _from_base64(source, self._limits.max_bytes)
            picture = load_picture(source, self._limits)
        except ImageError as error:
            raise as_api_error(error) from error
        # Requests may wait long, and decoded they would fill the memory.
        picture.release()
        return picture.within(LOW_DETAIL) if small else picture, len(picture.encoded())


def _scheme(url: str) -> str | None:
    """What the URL begins with, to the letter; None for base64, in which a colon has no place."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]{0,63}):", url)
    return match.group(1).lower() if match else None


def _from_base64(text: str, max_bytes: int) -> bytes:
    if len(text) > max_bytes // 3 * 4 + max_bytes // 32 + 4:
        raise ImageError(f"the picture has more than {max_bytes:,} bytes")
    try:
        return binascii.a2b_base64("".join(text.split()), strict_mode=True)
    except ValueError:
        raise ImageError("the picture is neither a data URI nor base64") from None


def _not_allowed(message: str, field: str) -> ApiError:
    return ApiError(400, message, "image_source_not_allowed", field)
