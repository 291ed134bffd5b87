"""Instructor, in the modes in which it asks a server like this."""

from typing import Any, Literal

import instructor
import openai
from instructor.exceptions import InstructorRetryException
from pydantic import BaseModel

from scripts.clients import program as p


class Capital(BaseModel, extra="forbid"):
    city: Literal["Paris", "Rome", "Ulm"]
    large: bool


def client(mode: Any = instructor.Mode.TOOLS) -> Any:
    plain = openai.OpenAI(base_url=p.BASE, api_key=p.KEY, max_retries=0)
    return instructor.from_openai(plain, mode=mode)


def ask(text: str = p.QUESTION, mode: Any = instructor.Mode.TOOLS, **more: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    given = {"response_model": Capital, **more}
    return client(mode).chat.completions.create(model=p.MODEL, messages=messages, **given)


def chat() -> None:
    p.expect(ask(response_model=None).choices[0].message.content, p.ANSWER)


def usage() -> None:
    _, told = client().chat.completions.create_with_completion(
        model=p.MODEL,
        messages=[{"role": "user", "content": p.QUESTION}],
        response_model=Capital,
    )
    assert told.usage.prompt_tokens > len(p.QUESTION)


def structured() -> None:
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        assert isinstance(ask(mode=mode), Capital), mode
    (*_, last) = client().chat.completions.create_partial(
        model=p.MODEL,
        messages=[{"role": "user", "content": p.QUESTION}],
        response_model=Capital,
    )
    Capital.model_validate(last.model_dump())


def errors() -> None:
    with p.refused(InstructorRetryException):
        ask(p.TOO_LONG, max_retries=1)


if __name__ == "__main__":
    p.report("instructor", chat=chat, usage=usage, structured=structured, errors=errors)
