"""The application: routes, and around them who may ask and how much."""

from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from engine.engine import Engine
from engine.server.access import KeyRequired, SameSite
from engine.server.answers import Health, Model, ModelList
from engine.server.chat import chat_router
from engine.server.completions import completion_router
from engine.server.documents import describe, errors
from engine.server.errors import PRIVATE, ApiError, add_error_handlers, json_response
from engine.server.fetch import Fetcher
from engine.server.limits import ANSWERING, Counted, Limits
from engine.server.metrics import CONTENT_TYPE
from engine.server.page import page_paths, page_router
from engine.server.paths import Paths
from engine.server.responses.memory import ResponseMemory
from engine.server.responses.routes import response_router
from engine.server.service import Service
from engine.server.settings import Settings


def create_app(engine: Engine, settings: Settings, fetcher: Fetcher | None = None) -> FastAPI:
    """An ASGI application that answers with `engine`, which stays the caller's to close.

    `fetcher` reaches the network for pictures, where `settings` allow it. `app.state.service` is
    what answers; call its `close` when the application ends.
    """
    if fetcher is None:
        fetcher = Fetcher(settings.max_image_bytes, settings.fetch_seconds)
    service = Service(engine, settings, fetcher)
    app = FastAPI(
        title="Sightline",
        description="Chat with a language model, and show it pictures, as with OpenAI's API.",
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.state.responses = ResponseMemory()
    page = page_paths()
    app.include_router(chat_router(service))
    app.include_router(completion_router(service))
    app.include_router(response_router(service, app.state.responses))
    app.include_router(_small_router(service))
    app.include_router(page_router(page))
    add_error_handlers(app)
    describe(app, settings)
    # The last one added is the first one asked.
    at_once = engine.parallel
    app.add_middleware(Limits, settings=settings, metrics=service.metrics, at_once=at_once)
    if settings.api_key is not None:
        free = frozenset({"/health", *page})
        app.add_middleware(KeyRequired, key=settings.api_key, open_paths=free)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
        )
    app.add_middleware(SameSite, settings=settings)
    known = frozenset({*ANSWERING, *page, "/v1/models", "/health", "/metrics", "/openapi.json"})
    app.add_middleware(Counted, metrics=service.metrics, routes=known)
    app.add_middleware(Paths)
    return app


def about_model(service: Service) -> dict[str, Any]:
    """See `engine.server.answers.Model`."""
    report, options = service.engine.report, service.options
    sees = report.add_on is not None
    context = options.context_limit(report.max_context)
    return {
        "id": service.settings.model,
        "object": "model",
        "created": service.started,
        "owned_by": "sightline",
        "context_length": context,
        "max_model_len": context,
        "architecture": {
            "input_modalities": ["text", "image"] if sees else ["text"],
            "output_modalities": ["text"],
        },
        "default_parameters": {name: getattr(options, name) for name in _TOLD},
    }


_TOLD = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def _small_router(service: Service) -> APIRouter:
    router = APIRouter()
    model = about_model(service)

    @router.get("/v1/models", response_model=ModelList, responses=errors())
    async def models() -> Response:
        """The one model that is served."""
        return json_response({"object": "list", "data": [model]})

    @router.get("/v1/models/{name:path}", response_model=Model, responses=errors(404))
    async def one_model(name: str) -> Response:
        """What /v1/models tells of it."""
        service.find_model(name)
        return json_response(model)

    @router.get("/health", response_model=Health, responses=errors(503))
    async def health() -> Response:
        """Whether requests are taken."""
        if service.closing:
            raise ApiError(503, "the server is shutting down", "shutting_down")
        return json_response({"status": "ok"})

    figures = errors()
    figures[200] = {"content": {"text/plain": {"schema": {"type": "string"}}}}

    @router.get("/metrics", response_class=Response, responses=figures)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), headers={**PRIVATE, "content-type": CONTENT_TYPE})

    return router
