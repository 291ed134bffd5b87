"""Answers that are held to a `response_format`, by the clients that people use."""

import json
from typing import Any

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field
from support.serving import Running

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "degrees": {"type": "integer", "minimum": -60, "maximum": 60},
    },
    "required": ["city", "degrees"],
    "additionalProperties": False,
}
ASKED: dict[str, Any] = {"max_tokens": 120, "temperature": 1.0, "seed": 1}


def named(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": schema}}


@pytest.fixture
def client(tiny_server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="none")


def test_a_schema(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Weather?"}],
        "response_format": named(WEATHER),
        **ASKED,
    }
    choice = client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "stop"
    jsonschema.validate(json.loads(choice.message.content), WEATHER)
    chunks = client.chat.completions.create(**asked, stream=True)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == choice.message.content


@pytest.mark.parametrize("without", [{"type": "json_object"}, named(None)])
def test_any_object(tiny_server: Running, without: dict[str, Any]) -> None:
    reply = tiny_server.chat("Hello", response_format=without, **ASKED)
    choice = reply.json["choices"][0]
    assert choice["message"]["content"].lstrip().startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)


def test_a_schema_that_is_refused(tiny_server: Running) -> None:
    for schema, saying in (({"not": {}}, "not"), ({"type": "objekt"}, "objekt")):
        reply = tiny_server.chat("Hello", response_format=named(schema))
        assert reply.status == 400
        assert saying in reply.error["message"]


class Weather(BaseModel):
    """As a user of openai-python writes it."""

    city: str = Field(max_length=8, description="Where it is.")
    degrees: int = Field(ge=-60, le=60)
    windy: bool | None


def test_parse_of_openai_python(client: openai.OpenAI) -> None:
    done = client.chat.completions.parse(
        model="tiny",
        messages=[{"role": "user", "content": "Weather?"}],
        response_format=Weather,
        **ASKED,
    )
    parsed = done.choices[0].message.parsed
    assert isinstance(parsed, Weather)
    assert -60 <= parsed.degrees <= 60
