"""What the tests share: servers of small random models, and a real browser."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from support import tiny
from support.moxin_checkpoint import write_seeing
from support.seeds import seed_of
from support.serving import Flow, Running, Watched, running

from engine import Engine, GenerationOptions, load

if TYPE_CHECKING:
    import openai
    from playwright.sync_api import Browser, Page, Request

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="session")
def seeing_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A model of small random weights that sees, and writes small letters without an end."""
    place = tmp_path_factory.mktemp("seeing-letters")
    letters = tiny.save_of_letters(7, place / "letters", max_position_embeddings=8192)
    tiny.write_only_words(letters)
    with load(write_seeing(place / "seeing", letters, seed_of("seeing letters"))) as engine:
        yield engine


@pytest.fixture(scope="session")
def seeing_server(seeing_engine: Engine) -> Iterator[Running]:
    with running(seeing_engine) as server:
        yield server


@pytest.fixture(scope="session")
def letters_engine(letters_folder: Path) -> Iterator[Engine]:
    """One that answers a few hundred tokens in a second, where any tokenizer will do."""
    with load(letters_folder) as engine:
        yield engine


@pytest.fixture(scope="session")
def page_flow() -> Flow:
    return Flow()


@pytest.fixture
def flow(page_flow: Flow) -> Iterator[Flow]:
    """How far the answers that the page asks for may go."""
    yield page_flow
    page_flow.release()


@pytest.fixture(scope="session")
def page_server(seeing_engine: Engine, page_flow: Flow) -> Iterator[Running]:
    # Smaller steps than by default, so that progress is told of short prompts too.
    options = GenerationOptions(max_tokens=4096, prefill_step_size=64)
    watched: Any = Watched(seeing_engine, page_flow.at_event)
    with running(watched, options=options) as server:
        yield server


@pytest.fixture(scope="session")
def tiny_server(tiny_engine: Engine) -> Iterator[Running]:
    with running(tiny_engine, model="tiny") as server:
        yield server


@pytest.fixture
def client(seeing_server: Running) -> "Iterator[openai.OpenAI]":
    """OpenAI's own client, talking to a small model that sees."""
    import openai  # which takes seconds

    with openai.OpenAI(base_url=f"{seeing_server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        # Its own sandbox cannot be had as root, nor in most containers; and without a GPU, what
        # draws in its place takes more time than the page.
        flags = ["--no-sandbox", "--disable-gpu", "--disable-software-rasterizer"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server_url(page_server: Running) -> str:
    return page_server.url


@pytest.fixture
def open_page(browser: "Browser", server_url: str) -> "Iterator[Callable[..., Page]]":
    """Opens the page in a fresh profile. At the end, nothing may have been complained about, and
    nothing fetched from elsewhere."""
    problems: list[str] = []
    contexts = []

    def opened(**settings: Any) -> "Page":
        context = browser.new_context(viewport={"width": 800, "height": 700}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)

        def console(message: Any) -> None:
            failed_on_purpose = "/v1/" in message.location["url"]
            if message.type in ("error", "warning") and not failed_on_purpose:
                problems.append(message.text)

        def requested(request: "Request") -> None:
            if not request.url.startswith((server_url, "data:", "blob:")):
                problems.append(f"fetched {request.url}")

        page.on("console", console)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", requested)
        page.goto(server_url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def page(open_page: "Callable[..., Page]") -> "Page":
    return open_page()


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    files = []
    for name in ("red", "green", "blue"):
        files.append(tmp_path / f"{name}.png")
        picture = Image.new("RGB", (48, 32), name)
        picture.putpixel((0, 0), tuple(random.randbytes(3)))  # one that no test has shown yet
        picture.save(files[-1])
    return files
