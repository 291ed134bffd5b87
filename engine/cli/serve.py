"""`sightline serve`: answer over HTTP, as OpenAI's API does."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from engine.cli.arguments import add_loading, text
from engine.cli.loading import open_engine
from engine.ranks.ranks import follows, launched
from vision_add_ons.errors import OptionError, SightlineError

KEY_VARIABLE = "SIGHTLINE_API_KEY"


class ServerNotInstalled(SightlineError):
    """The packages of the extra `server` are missing."""


def add_command(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser("serve", help="answer over HTTP, as OpenAI's API does")
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="where to listen (default 127.0.0.1)")
    add("--port", type=int, default=8000, help="0 takes a free one (default 8000)")
    served = (
        "the id that /v1/models tells (default: the model's short name, hub id or folder's name)"
    )
    add("--served-name", type=text, metavar="NAME", help=served)
    strict = "refuse requests that name another model, or none"
    add("--strict-model", action="store_true", help=strict)
    several = "; may be given several times"

    add = parser.add_argument_group("access").add_argument
    key = f"asked of every request; needed for another host (or the variable {KEY_VARIABLE})"
    add("--api-key", metavar="KEY", help=key)
    names = "a name, beside the loopback's, by which the server may be asked" + several
    add("--allow-host", action="append", default=[], metavar="NAME", help=names)
    origins = (
        "whose pages may call the server: a site, like https://app.example, an app or extension, "
        "like app://name (also tauri, capacitor, vscode-webview, chrome-extension), or null, "
        "which any site's pages can be" + several
    )
    add("--cors-origin", action="append", default=[], metavar="ORIGIN", help=origins)
    urls = "fetch pictures from public http(s) addresses"
    add("--allow-image-urls", action="store_true", help=urls)
    root = "read pictures of file: URLs, from this folder alone"
    add("--media-root", type=Path, metavar="DIR", help=root)

    add = parser.add_argument_group("limits").add_argument
    at_once = "answers made at once (default 8; 1 where several ranks hold the model)"
    add("--parallel", type=int, default=1 if launched() else 8, metavar="N", help=at_once)
    add("--max-queue", type=int, metavar="N", help="requests that may wait (default 64)")
    add("--max-body-bytes", type=int, metavar="N", help="a request's size (default 32 MiB)")
    add("--max-images", type=int, metavar="N", help="pictures of a request (default 32)")
    add("--max-pixels", type=int, metavar="N", help="of one picture (default 40 million)")
    seconds = "how long answers may go on at the end (default 10)"
    add("--shutdown-seconds", type=float, metavar="S", help=seconds)

    add_loading(parser)
    parser.set_defaults(run=run)


_NULL = "sightline: without an --api-key, --cors-origin null lets the pages of any site in"


def _checked_name(name: str) -> str:
    if not name.strip() or len(name) > 256 or not name.isprintable():
        raise OptionError("--served-name must be a name of 1 to 256 characters in one line")
    return name


_LIMITS = ("max_queue", "max_body_bytes", "max_images", "max_pixels", "shutdown_seconds")


def run(args: argparse.Namespace) -> int:
    try:
        from engine.server import Settings, serve
        from engine.server.run import listen
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "uvicorn", "prometheus_client"):
            raise
        raise ServerNotInstalled(
            f"the server needs {error.name}: pip install 'sightline[server]'"
        ) from error

    if not 0 <= args.port < 2**16:
        raise OptionError(f"--port must be from 0 to 65535, not {args.port}")
    limits = {name: getattr(args, name) for name in _LIMITS if getattr(args, name) is not None}
    folder = Path(args.model)
    # A folder is served by its name: where it lies is nobody's business.
    name = folder.resolve().name if folder.is_dir() else args.model
    if args.served_name is not None:
        name = _checked_name(args.served_name)
    key = args.api_key
    settings = Settings(
        model=name,
        strict_model=args.strict_model,
        host=args.host,
        api_key=os.environ.get(KEY_VARIABLE) or None if key is None else key,
        allowed_hosts=tuple(args.allow_host),
        cors_origins=tuple(args.cors_origin),
        allow_image_urls=args.allow_image_urls,
        media_root=args.media_root,
        **limits,
    )
    if follows():
        open_engine(args, args.parallel)  # it comes back from there when the first has ended
    # Bound before the model loads: a port in use is known at once, and nobody gets in yet.
    with listen(args.host, args.port) as listener:
        port = listener.getsockname()[1]
        shown = f"[{args.host}]" if ":" in args.host else args.host

        def started() -> None:
            if "null" in settings.cors_origins and settings.api_key is None:
                print(_NULL, file=sys.stderr)
            told = f"sightline: serving {name} at http://{shown}:{port}"
            print(told, file=sys.stderr, flush=True)

        with open_engine(args, args.parallel) as engine:
            serve(engine, settings, listener, started)
    return 0
