"""A response's parameters as the engine's options."""

from dataclasses import replace

from engine.options import GenerationOptions
from engine.server.formats import NamedSchema, ObjectFormat, schema_of
from engine.server.options import conversing
from engine.server.responses.schemas import ResponseRequest


def response_options(asked: ResponseRequest, defaults: GenerationOptions) -> GenerationOptions:
    """Raises `OptionError`."""
    given = conversing(asked, defaults)
    if asked.logprobs:
        given |= {"logprobs": True, "top_logprobs": asked.top_logprobs or 0}
    wanted = asked.text.format if asked.text else None
    if isinstance(wanted, ObjectFormat | NamedSchema):
        given["schema"] = schema_of(wanted)
    return replace(defaults, **given)
