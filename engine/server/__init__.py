"""An HTTP server that speaks OpenAI's protocol, for one engine.

    from engine import load
    from engine.server import Settings, create_app

    app = create_app(load("demo"), Settings(model="demo"))  # any ASGI server can run it

Needs the extra `sightline[server]`; nothing outside this package imports it.
"""

from engine.server.app import create_app
from engine.server.run import serve
from engine.server.settings import Settings

__all__ = ["Settings", "create_app", "serve"]
