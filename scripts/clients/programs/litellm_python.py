"""LiteLLM as a library, as CrewAI, older dspy and others use it."""

import json
from typing import Any

import litellm

from scripts.clients import program as p
from scripts.clients.programs.openai_python import TOOL, Capital

litellm.telemetry = False
litellm.suppress_debug_info = True


def ask(text: Any = p.QUESTION, base: str = p.BASE, **more: Any) -> Any:
    messages = text if isinstance(text, list) else [{"role": "user", "content": text}]
    return litellm.completion(
        model="openai/taught",
        api_base=base,
        api_key=p.KEY,
        messages=messages,
        num_retries=0,
        max_retries=0,
        **more,
    )


def chat() -> None:
    p.expect(ask().choices[0].message.content, p.ANSWER)


def stream() -> None:
    told = [chunk.choices[0].delta.content for chunk in ask(stream=True)]
    p.expect_pieces([text for text in told if text])


def picture() -> None:
    parts = [
        {"type": "text", "text": p.LOOK},
        {"type": "image_url", "image_url": {"url": p.picture_uri()}},
    ]
    reply = ask([{"role": "user", "content": parts}], p.EYES, max_tokens=8)
    p.expect_in(p.BADGER, reply.choices[0].message.content)


def usage() -> None:
    told = ask().usage
    p.expect_usage(told.prompt_tokens, told.completion_tokens)
    *_, last = ask(stream=True, stream_options={"include_usage": True})
    p.expect_usage(last.usage.prompt_tokens, last.usage.completion_tokens)


def stop() -> None:
    p.expect(ask(stop=["Paris"]).choices[0].message.content, p.ANSWER.partition("Paris")[0])


def tools() -> None:
    question = {"role": "user", "content": p.WEATHER}
    chunks = list(ask([question], tools=[TOOL], stream=True))
    for reply in (ask([question], tools=[TOOL]), litellm.stream_chunk_builder(chunks)):
        message = reply.choices[0].message
        (call,) = message.tool_calls
        p.expect(json.loads(call.function.arguments), {"city": "Ulm"})
        result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        told = ask([question, message, result], tools=[TOOL])
        p.expect(told.choices[0].message.content, p.SUNNY)
        told = ask([question, message.model_dump(), result], tools=[TOOL])
        p.expect(told.choices[0].message.content, p.SUNNY)


def structured() -> None:
    Capital.model_validate_json(ask(response_format=Capital).choices[0].message.content)


def errors() -> None:
    with p.refused(litellm.exceptions.ContextWindowExceededError):
        ask(p.TOO_LONG)
    with p.refused(litellm.exceptions.BadRequestError, "temperature"):
        ask(temperature=-1)


def cancel() -> None:
    with p.cancelled():
        chunks = ask(p.STORY, stream=True)
        for _, _ in zip(range(5), chunks, strict=False):
            pass
        chunks.completion_stream.close()


if __name__ == "__main__":
    p.report(
        "litellm",
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
