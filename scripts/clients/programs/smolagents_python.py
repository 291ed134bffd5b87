"""Hugging Face's smolagents."""

from typing import Any

from PIL import Image
from smolagents import OpenAIModel, ToolCallingAgent, tool

from scripts.clients import program as p


def model(base: str = p.BASE, **more: Any) -> OpenAIModel:
    return OpenAIModel(model_id=p.MODEL, api_base=base, api_key=p.KEY, **more)


def message(text: str, *more: Any) -> list[Any]:
    return [{"role": "user", "content": [{"type": "text", "text": text}, *more]}]


@tool
def weather(city: str) -> str:
    """Tells the weather.

    Args:
        city: Where.
    """
    return "sunny" if city == "Ulm" else ""


def chat() -> None:
    p.expect(model()(message(p.QUESTION)).content, p.ANSWER)


def stream() -> None:
    told = [delta.content for delta in model().generate_stream(message(p.QUESTION))]
    p.expect_pieces([text for text in told if text])


def picture() -> None:
    import io

    shown = {"type": "image", "image": Image.open(io.BytesIO(p.picture()))}
    p.expect_in(p.BADGER, model(p.EYES, max_tokens=8)(message(p.LOOK, shown)).content)


def usage() -> None:
    told: Any = model()(message(p.QUESTION)).token_usage
    p.expect_usage(told.input_tokens, told.output_tokens)
    *_, last = model().generate_stream(message(p.QUESTION))
    told = last.token_usage
    p.expect_usage(told.input_tokens, told.output_tokens)


def stop() -> None:
    told = model()(message(p.QUESTION), stop_sequences=["Paris"]).content
    p.expect(told, p.ANSWER.partition("Paris")[0])


def tools() -> None:
    for streamed in (False, True):
        # It has a call enforced by default, and the model then says whatever the grammar allows.
        for choice in ("required", "auto"):
            asked = model(tool_choice=choice)
            agent = ToolCallingAgent(
                tools=[weather],
                model=asked,
                verbosity_level=0,
                stream_outputs=streamed,
                max_steps=3,
            )
            told = agent.run(p.WEATHER)
            p.expect(told == p.SUNNY, choice == "auto")


def structured() -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": list(p.CITIES)}},
        "required": ["city"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "Capital", "schema": schema}}
    told = model()(message(p.QUESTION), response_format=form).content
    p.expect(str(told).startswith("{"), True)


def errors() -> None:
    with p.refused(Exception):
        model()(message(p.TOO_LONG))


if __name__ == "__main__":
    p.report(
        "smolagents",
        chat=chat,
        stream=stream,
        picture=picture,
        usage=usage,
        stop=stop,
        tools=tools,
        structured=structured,
        errors=errors,
    )
