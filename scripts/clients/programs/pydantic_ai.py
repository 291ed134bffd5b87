"""Pydantic AI, by Chat Completions, or by Responses if that word follows."""

import sys
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from scripts.clients import program as p

RESPONSES = "responses" in sys.argv


def model(base: str = p.BASE) -> Any:
    kind = OpenAIResponsesModel if RESPONSES else OpenAIChatModel
    return kind(p.MODEL, provider=OpenAIProvider(base_url=base, api_key=p.KEY))


agent = Agent(model())


class Capital(BaseModel, extra="forbid"):
    city: Literal["Paris", "Rome", "Ulm"]
    large: bool


async def chat() -> None:
    p.expect((await agent.run(p.QUESTION)).output, p.ANSWER)


async def stream() -> None:
    async with agent.run_stream(p.QUESTION) as run:
        pieces = [text async for text in run.stream_text(delta=True, debounce_by=None)]
    p.expect_pieces(pieces)


async def picture() -> None:
    shown = BinaryContent(p.picture(), media_type="image/png")
    run = await Agent(model(p.EYES)).run([p.LOOK, shown], model_settings={"max_tokens": 16})
    p.expect_in(p.BADGER, run.output)


async def usage() -> None:
    told: Any = (await agent.run(p.QUESTION)).usage
    p.expect_usage(told.input_tokens, told.output_tokens)
    async with agent.run_stream(p.QUESTION) as run:
        await run.get_output()
        told = run.usage
    p.expect_usage(told.input_tokens, told.output_tokens)


async def stop() -> None:
    run = await agent.run(p.QUESTION, model_settings={"stop_sequences": ["Paris"]})
    p.expect(run.output, p.ANSWER.partition("Paris")[0])


async def tools() -> None:
    asker = Agent(model())

    @asker.tool_plain
    def weather(city: str) -> str:
        """Tells the weather."""
        return "sunny" if city == "Ulm" else ""

    p.expect((await asker.run(p.WEATHER)).output, p.SUNNY)
    kinds = []

    async def watch(_: Any, events: Any) -> None:  # with which answers are streamed
        kinds.extend([event.event_kind async for event in events])

    run = await asker.run(p.WEATHER, event_stream_handler=watch)
    p.expect(run.output, p.SUNNY)
    assert "part_delta" in kinds
    assert "function_tool_result" in kinds


async def structured() -> None:
    kinds: tuple[Any, ...] = (Capital, ToolOutput(Capital), NativeOutput(Capital))
    for kind in kinds:
        run: Any = await Agent(model(), output_type=kind).run(p.QUESTION)
        assert isinstance(run.output, Capital)


async def errors() -> None:
    with p.refused(ModelHTTPError):
        await agent.run(p.TOO_LONG)
    with p.refused(ModelHTTPError, "temperature"):
        await agent.run(p.QUESTION, model_settings={"temperature": -1})


async def cancel() -> None:
    with p.cancelled():
        async with agent.run_stream(p.STORY) as run:
            count = 0
            async for _ in run.stream_text(delta=True, debounce_by=None):
                count += 1
                if count == 5:
                    break


if __name__ == "__main__":
    p.report(
        "pydantic-ai-slim",
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
