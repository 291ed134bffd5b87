"""Simon Willison's LLM, with the file in which people name a server like this."""

import os
import tempfile
from pathlib import Path
from typing import Any, Literal

from scripts.clients import program as p

folder = tempfile.mkdtemp()
os.environ["LLM_USER_PATH"] = folder
LINES = """\
- model_id: {name}
  model_name: {name}
  api_base: {base}
  supports_tools: true
  supports_schema: true
  vision: true
"""
Path(folder, "extra-openai-models.yaml").write_text(
    LINES.format(name="taught", base=p.BASE) + LINES.format(name="demo", base=p.EYES)
)

import llm  # noqa: E402
from pydantic import BaseModel  # noqa: E402


class Capital(BaseModel, extra="forbid"):
    city: Literal["Paris", "Rome", "Ulm"]
    large: bool


def model(name: str = p.MODEL) -> Any:
    found = llm.get_model(name)
    found.key = p.KEY
    return found


def weather(city: str) -> str:
    """Tells the weather."""
    return "sunny" if city == "Ulm" else ""


def chat() -> None:
    p.expect(model().prompt(p.QUESTION, stream=False).text(), p.ANSWER)


def stream() -> None:
    p.expect_pieces([text for text in model().prompt(p.QUESTION) if text])


def picture() -> None:
    shown = llm.Attachment(content=p.picture(), type="image/png")
    reply = model("demo").prompt(p.LOOK, attachments=[shown], max_tokens=8)
    p.expect_in(p.BADGER, reply.text())


def usage() -> None:
    for streamed in (False, True):
        reply = model().prompt(p.QUESTION, stream=streamed)
        reply.text()
        told = reply.usage()
        p.expect_usage(told.input, told.output)


def stop() -> None:
    told = model().prompt(p.QUESTION, stop="Paris").text()
    p.expect(told, p.ANSWER.partition("Paris")[0])


def tools() -> None:
    for streamed in (False, True):
        told = model().chain(p.WEATHER, tools=[weather], stream=streamed).text()
        p.expect_in(p.SUNNY, told)


def structured() -> None:
    Capital.model_validate_json(model().prompt(p.QUESTION, schema=Capital).text())


def errors() -> None:
    with p.refused(Exception):
        model().prompt(p.TOO_LONG).text()


if __name__ == "__main__":
    p.report(
        "llm",
        chat=chat,
        stream=stream,
        picture=picture,
        usage=usage,
        stop=stop,
        tools=tools,
        structured=structured,
        errors=errors,
    )
