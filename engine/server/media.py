"""Reading files below one folder, and never through a link."""

import errno
import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from engine.server.errors import ApiError


class MediaRoot:
    """The folder that `file:` URLs are confined to.

    Held open, and walked from one opened folder to the next without following links: what is
    swapped meanwhile cannot lead out.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve(strict=True)
        self._folder = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def read(self, url: str, max_bytes: int) -> bytes:
        """The file that a `file:` URL names, relative to the root or within it by its whole path.

        Raises `ApiError`; it never tells what lies outside, nor where the root is.
        """
        parts = self._parts(url)
        folder = os.dup(self._folder)
        try:
            for name in parts[:-1]:
                inner = os.open(name, _FLAGS | os.O_DIRECTORY, dir_fd=folder)
                os.close(folder)
                folder = inner
            # O_NONBLOCK: opening a pipe must not wait for somebody to write to it.
            file = os.open(parts[-1], _FLAGS | os.O_NONBLOCK, dir_fd=folder)
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
                raise
            raise _missing() from None
        finally:
            os.close(folder)
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            os.close(file)
            raise _missing()
        with open(file, "rb") as opened:
            if status.st_size > max_bytes:
                message = f"the picture has more than {max_bytes:,} bytes"
                raise ApiError(400, message, "invalid_image")
            return opened.read(max_bytes)

    def _parts(self, url: str) -> list[str]:
        try:
            split = urlsplit(url)
            path = unquote(split.path, errors="strict")
        except ValueError:
            raise _missing() from None
        if split.netloc not in ("", "localhost") or split.query or split.fragment:
            raise _missing()
        if path.startswith("/"):
            root = f"{self._root}/".replace("//", "/")
            if not path.startswith(root):
                raise _missing()
            path = path[len(root) :]
        parts = path.split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise _missing()
        return parts


_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def _missing() -> ApiError:
    return ApiError(400, "there is no such picture in the server's media folder", "invalid_image")
