"""What a server may do, decided once when it starts."""

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from engine.options import GenerationOptions
from vision_add_ons.errors import OptionError

_PORTS = {"http": 80, "https": 443}
_OF_APPS = re.compile(r"(app|tauri|capacitor|vscode-webview|chrome-extension)://[a-z0-9._-]{1,253}")
"""The origins of pages that come with a program of this machine, or a browser's extension: no site
can take them."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Settings:
    """Times are in seconds, sizes in bytes. What contradicts itself raises `OptionError`."""

    model: str = "demo"
    """The id under which the model is served."""
    strict_model: bool = False
    """Refuse requests that name another model, or none."""
    host: str = "127.0.0.1"
    """Where the server listens; anything but a loopback address needs an `api_key`."""
    api_key: str | None = field(default=None, repr=False)
    """Asked of every request but those for the page and for `/health`."""
    allowed_hosts: tuple[str, ...] = ()
    """Names, beside those of the loopback, that a request's Host header may carry."""
    cors_origins: tuple[str, ...] = ()
    """Origins ("https://app.example", "app://name", "null") whose pages may call this server; none
    by default. "null" is what the pages of any site can make themselves."""
    allow_image_urls: bool = False
    """Fetch pictures from public http(s) addresses."""
    media_root: Path | None = None
    """The folder that `file:` URLs of pictures are confined to; None refuses them all."""
    max_queue: int = 64
    """Requests that may wait behind those at work; the next is refused with 429. The last
    quarter of these places is kept from a client that has all the others."""
    max_connections: int = 256
    """Open at once; the next is closed unread."""
    max_body_bytes: int = 32 * 2**20
    """The size of a request's body; a larger one is refused with 413."""
    max_images: int = 32
    """Pictures of one request."""
    max_image_bytes: int = 20 * 2**20
    """The encoded size of one picture."""
    max_pixels: int = 40_000_000
    """The pixels of one picture; asked before it is decoded."""
    header_seconds: float = 10.0
    """Within which a request's head must be there."""
    body_seconds: float = 60.0
    """Within which a request's body must be there."""
    send_seconds: float = 30.0
    """How long a client may leave an answer unread."""
    idle_seconds: float = 30.0
    """How long a connection may stay open between two requests."""
    fetch_seconds: float = 10.0
    """Within which a picture must be fetched, redirects included."""
    keep_alive_seconds: float = 15.0
    """A stream with nothing to tell sends a comment this often."""
    shutdown_seconds: float = 10.0
    """How long answers may go on when the server is told to stop."""
    options: GenerationOptions | None = None
    """What holds where a request says nothing; None: what the model's checkpoint asks for, and
    answers as long as its context allows."""

    def __post_init__(self) -> None:
        if self.api_key is not None and not re.fullmatch(r"[!-~]{8,512}", self.api_key):
            raise OptionError("an API key has 8 to 512 printable ASCII characters and no space")
        if self.api_key is None and not self.loopback:
            raise OptionError(
                f"listening on {self.host!r:.80} would let others in: set an API key, or leave "
                "the host at 127.0.0.1"
            )
        for name in self.allowed_hosts:
            _check_name(name)
        for origin in self.cors_origins:
            _check_origin(origin)
        for name in ("max_body_bytes", "max_image_bytes", "max_pixels", "max_connections"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("max_queue", "max_images"):
            if getattr(self, name) < 0:
                raise OptionError(f"{name} must be at least 0, not {getattr(self, name)}")
        if not 0 <= self.shutdown_seconds < float("inf"):
            raise OptionError(f"shutdown_seconds must be at least 0, not {self.shutdown_seconds}")
        if self.media_root is not None and not self.media_root.is_dir():
            raise OptionError(f"the media root {self.media_root} is no folder")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _check_name(name: str) -> None:
    """A port, a scheme or a wildcard would never be found in a Host header's name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        if not re.fullmatch(r"[a-zA-Z0-9_.-]{1,253}", name):
            raise OptionError(
                f"{name!r:.80} is no host's name; give it alone, like box.example"
            ) from None


def _check_origin(origin: str) -> None:
    if origin == "null" or _OF_APPS.fullmatch(origin):
        return
    try:
        parts = urlsplit(origin)
        whole = f"{parts.scheme}://{parts.netloc}"
        plain = parts.username is None and parts.port != _PORTS.get(parts.scheme, 0)
        valid = parts.scheme in _PORTS and parts.hostname and plain
    except ValueError:
        valid = None
    # As browsers write it: in small letters, without the port that its scheme has anyway.
    if not valid or origin != whole or origin != origin.lower():
        raise OptionError(
            f"{origin!r:.80} is no origin; one looks like https://app.example, "
            "http://localhost:3000, or that of an app, app://name"
        )
