"""LangChain's ChatOpenAI, by Chat Completions, or by Responses if that word follows."""

import sys
import warnings
from typing import Any, Literal

import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from scripts.clients import program as p

RESPONSES = "responses" in sys.argv


def made(base: str = p.BASE, **more: Any) -> ChatOpenAI:
    more["use_responses_api"] = RESPONSES
    given = {"model": p.MODEL, "base_url": base, "api_key": SecretStr(p.KEY), "max_retries": 0}
    return ChatOpenAI(**{**given, **more})


model = made()


@tool
def weather(city: str) -> str:
    """Tells the weather."""
    return "sunny" if city == "Ulm" else ""


class Capital(BaseModel, extra="forbid"):
    """A capital."""

    city: Literal["Paris", "Rome", "Ulm"]
    large: bool


def chat() -> None:
    p.expect(model.invoke(p.QUESTION).text, p.ANSWER)


def stream() -> None:
    p.expect_pieces([chunk.text for chunk in model.stream(p.QUESTION) if chunk.text])


def picture() -> None:
    eyes = made(p.EYES, max_tokens=16)
    parts: list[Any] = [
        {"type": "text", "text": p.LOOK},
        {"type": "image_url", "image_url": {"url": p.picture_uri()}},
    ]
    p.expect_in(p.BADGER, eyes.invoke([HumanMessage(parts)]).text)
    data = p.picture_uri().partition(",")[2]
    parts[1] = {"type": "image", "base64": data, "mime_type": "image/png"}
    p.expect_in(p.BADGER, eyes.invoke([HumanMessage(parts)]).text)


def usage() -> None:
    told: Any = model.invoke(p.QUESTION).usage_metadata
    p.expect_usage(told["input_tokens"], told["output_tokens"])
    whole: Any = None
    for chunk in made(stream_usage=True).stream(p.QUESTION):
        whole = chunk if whole is None else whole + chunk
    told = whole.usage_metadata
    p.expect_usage(told["input_tokens"], told["output_tokens"])


def stop() -> None:
    p.expect(model.invoke(p.QUESTION, stop=["Paris"]).text, p.ANSWER.partition("Paris")[0])


def tools() -> None:
    calls = model.bind_tools([weather])
    question = HumanMessage(p.WEATHER)
    streamed = None
    for chunk in calls.stream([question]):
        streamed = chunk if streamed is None else streamed + chunk
    for message in (calls.invoke([question]), streamed):
        (call,) = message.tool_calls
        p.expect((call["name"], call["args"]), ("weather", {"city": "Ulm"}))
        result: ToolMessage = weather.invoke(call)
        p.expect(calls.invoke([question, message, result]).text, p.SUNNY)


def structured() -> None:
    methods: tuple[Any, ...] = ("json_schema", "function_calling")
    for method in methods:
        for strict in (None, True):
            with warnings.catch_warnings(action="ignore"):
                answers = model.with_structured_output(Capital, method=method, strict=strict)
            assert isinstance(answers.invoke(p.QUESTION), Capital)


def errors() -> None:
    from langchain_core.exceptions import ContextOverflowError

    with p.refused(ContextOverflowError):
        model.invoke(p.TOO_LONG)
    with p.refused(openai.BadRequestError, "temperature"):
        made(temperature=-1).invoke(p.QUESTION)


def cancel() -> None:
    with p.cancelled():
        pieces = model.stream(p.STORY)
        for _, _ in zip(range(5), pieces, strict=False):
            pass
        pieces.close()  # type: ignore[attr-defined]


if __name__ == "__main__":
    p.report(
        "langchain-openai",
        chat=chat,
        stream=stream,
        picture=picture,
        usage=usage,
        **({} if RESPONSES else {"stop": stop}),  # which that protocol has not
        tools=tools,
        structured=structured,
        errors=errors,
        cancel=cancel,
    )
