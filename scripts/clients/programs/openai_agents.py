"""OpenAI's Agents SDK, by Chat Completions, or by Responses if that word follows."""

import sys
from typing import Any, Literal

import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

from scripts.clients import program as p

set_tracing_disabled(True)


def model(base: str = p.BASE) -> Any:
    client = AsyncOpenAI(base_url=base, api_key=p.KEY, max_retries=0)
    kind = OpenAIResponsesModel if "responses" in sys.argv else OpenAIChatCompletionsModel
    return kind(model=p.MODEL, openai_client=client)


def agent(base: str = p.BASE, **more: Any) -> Any:
    return Agent(name="Guide", instructions="Be brief.", model=model(base), **more)


@function_tool
def weather(city: str) -> str:
    """Tells the weather."""
    return "sunny" if city == "Ulm" else ""


class Capital(BaseModel, extra="forbid"):
    city: Literal["Paris", "Rome", "Ulm"]
    large: bool


def pieces_of(event: Any) -> str:
    data = getattr(event, "data", None)
    return data.delta if getattr(data, "type", "") == "response.output_text.delta" else ""


async def chat() -> None:
    p.expect((await Runner.run(agent(), p.QUESTION)).final_output, p.ANSWER)


async def stream() -> None:
    run = Runner.run_streamed(agent(), p.QUESTION)
    p.expect_pieces([text async for event in run.stream_events() if (text := pieces_of(event))])


async def picture() -> None:
    parts = [
        {"type": "input_text", "text": p.LOOK},
        {"type": "input_image", "image_url": p.picture_uri(), "detail": "auto"},
    ]
    few = agent(p.EYES, model_settings=ModelSettings(max_tokens=16))
    run = await Runner.run(few, [{"role": "user", "content": parts}])
    p.expect_in(p.BADGER, run.final_output)


async def usage() -> None:
    told = (await Runner.run(agent(), p.QUESTION)).context_wrapper.usage
    p.expect_usage(told.input_tokens, told.output_tokens)
    run = Runner.run_streamed(agent(model_settings=ModelSettings(include_usage=True)), p.QUESTION)
    async for _ in run.stream_events():
        pass
    told = run.context_wrapper.usage
    p.expect_usage(told.input_tokens, told.output_tokens)


async def tools() -> None:
    asker = agent(tools=[weather])
    p.expect((await Runner.run(asker, p.WEATHER)).final_output, p.SUNNY)
    run = Runner.run_streamed(asker, p.WEATHER)
    async for _ in run.stream_events():
        pass
    p.expect(run.final_output, p.SUNNY)
    # A second agent, to whom the first hands over: a tool as well.
    first = agent(handoffs=[Agent(name="weather", model=model(), tools=[weather])])
    assert (await Runner.run(first, p.QUESTION)).final_output == p.ANSWER


async def structured() -> None:
    run = await Runner.run(agent(output_type=Capital), p.QUESTION)
    assert isinstance(run.final_output, Capital)


async def errors() -> None:
    with p.refused(openai.BadRequestError):
        await Runner.run(agent(), p.TOO_LONG)
    with p.refused(openai.BadRequestError, "temperature"):
        await Runner.run(agent(model_settings=ModelSettings(temperature=-1)), p.QUESTION)


async def cancel() -> None:
    with p.cancelled():
        run = Runner.run_streamed(agent(), p.STORY)
        count = 0
        async for event in run.stream_events():
            count += bool(pieces_of(event))
            if count == 5:
                run.cancel()


if __name__ == "__main__":
    p.report(
        "openai-agents",
        chat=chat,
        stream=stream,
        picture=picture,
        usage=usage,
        tools=tools,
        structured=structured,
        errors=errors,
        cancel=cancel,
    )
