"""OpenAI's own client for Python, by Chat Completions."""

import json
from typing import Any, Literal

import openai
from pydantic import BaseModel

from scripts.clients import program as p

client = openai.OpenAI(base_url=p.BASE, api_key=p.KEY, max_retries=0)
eyes = openai.OpenAI(base_url=p.EYES, api_key=p.KEY, max_retries=0)
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


class Capital(BaseModel):
    city: Literal["Paris", "Rome", "Ulm"]
    large: bool


def ask(text: str = p.QUESTION, **more: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model=p.MODEL, messages=messages, **more)  # type: ignore[call-overload]


def chat() -> None:
    p.expect(ask().choices[0].message.content, p.ANSWER)


def stream() -> None:
    chunks = [chunk.choices[0].delta.content for chunk in ask(stream=True)]
    p.expect_pieces([text for text in chunks if text])


def picture() -> None:
    parts: Any = [
        {"type": "text", "text": p.LOOK},
        {"type": "image_url", "image_url": {"url": p.picture_uri()}},
    ]
    messages: Any = [{"role": "user", "content": parts}]
    reply = eyes.chat.completions.create(model="demo", messages=messages, max_tokens=8)
    p.expect_in(p.BADGER, reply.choices[0].message.content)


def usage() -> None:
    told = ask().usage
    p.expect_usage(told.prompt_tokens, told.completion_tokens)
    *_, last = ask(stream=True, stream_options={"include_usage": True})
    p.expect_usage(last.usage.prompt_tokens, last.usage.completion_tokens)


def stop() -> None:
    choice = ask(stop=["Paris"]).choices[0]
    p.expect(choice.message.content, p.ANSWER.partition("Paris")[0])
    p.expect(choice.finish_reason, "stop")


def tools() -> None:
    messages: Any = [{"role": "user", "content": p.WEATHER}]
    for streamed in (False, True):
        if streamed:
            with client.chat.completions.stream(
                model=p.MODEL, messages=messages[:1], tools=[TOOL]
            ) as events:
                message: Any = events.get_final_completion().choices[0].message
        else:
            message = (
                client.chat.completions.create(model=p.MODEL, messages=messages, tools=[TOOL])
                .choices[0]
                .message
            )
        (call,) = message.tool_calls
        p.expect((call.function.name, json.loads(call.function.arguments)), WANTED)
        result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        reply = client.chat.completions.create(
            model=p.MODEL, messages=[*messages, message, result], tools=[TOOL]
        )
        p.expect(reply.choices[0].message.content, p.SUNNY)


WANTED = ("weather", {"city": "Ulm"})


def structured() -> None:
    reply = client.chat.completions.parse(
        model=p.MODEL,
        messages=[{"role": "user", "content": p.QUESTION}],
        response_format=Capital,
    )
    assert isinstance(reply.choices[0].message.parsed, Capital)


def errors() -> None:
    with p.refused(openai.BadRequestError):
        ask(p.TOO_LONG)
    with p.refused(openai.BadRequestError, "temperature"):
        ask(temperature=-1)


def cancel() -> None:
    with p.cancelled(), ask(p.STORY, stream=True) as chunks:
        for _, _ in zip(range(5), chunks, strict=False):
            pass


if __name__ == "__main__":
    p.report(
        "openai",
        chat=chat,
        stream=stream,
        picture=picture,
        usage=usage,
        stop=stop,
        tools=tools,
        structured=structured,
        errors=errors,
        cancel=cancel,
    )
