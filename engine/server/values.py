"""The values that a request's fields may have, and what all of its objects have in common."""

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError

from engine.options import BOUNDS, LARGEST
from engine.prompts.text_encoder import MOST_PARTS
from engine.server.fields import allowed

Unsupported = Annotated[None, Field(description="Not supported; null at most.")]


def _no_list(value: Any) -> Any:
    return None if value in ([], {}) else value


Empty = Annotated[
    None, BeforeValidator(_no_list), Field(description="Not supported; null or empty at most.")
]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = BeforeValidator(_whole)
"""JSON knows no integers: 5.0 is 5. It stands behind the bounds, or /openapi.json lacks them."""
Positive = Annotated[int, Field(ge=1, le=LARGEST), Whole]
Count = Annotated[int, Field(ge=0, le=LARGEST), Whole]
CountOrAll = Annotated[int, Field(ge=-1, le=LARGEST), Whole]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1), Whole]
Alternatives = Annotated[int, Field(ge=0, le=20), Whole]
MOST_ANSWERS = 32
"""How many answers a request may ask for, to all of its prompts together."""
Answers = Annotated[int, Field(ge=1, le=8), Whole]


def _some(value: int) -> int:
    if value == 0:
        raise ValueError("must be at least 1, or -1 for as many as the context holds")
    return value


MaxTokens = Annotated[CountOrAll, AfterValidator(_some)]


def _flag(value: Any) -> Any:
    if value is not None and not isinstance(value, bool):
        raise ValueError("must be false")  # to Python, 0 is as false as False
    return value


Off = Annotated[Literal[False] | None, BeforeValidator(_flag)]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


def within(name: str, **more: Any) -> Any:
    """A field with the engine's own bounds of an option; None if not given."""
    low, high = BOUNDS[name]
    return Field(None, ge=low, le=high, **more)


Word = Literal["none", "auto", "required"]
"""What a `tool_choice` may be where it names no tool."""


def _kind_of_choice(choice: Any) -> str:
    if isinstance(choice, str):
        return "<word>"
    kind = choice.get("type") if isinstance(choice, dict) else getattr(choice, "type", None)
    return f"<{kind}>" if kind in ("function", "allowed_tools") else "<none>"


ByKind = Discriminator(
    _kind_of_choice,
    custom_error_type="no_choice",
    custom_error_message="must be auto, none, required, a function or allowed_tools",
)
"""For a `tool_choice`, whose branches have the tags "<word>", "<function>" and
"<allowed_tools>"."""

Bias = Annotated[float, Field(ge=BOUNDS["logit_bias"][0], le=BOUNDS["logit_bias"][1])]
MOST_BIASES = 1024


def not_many(biases: Any) -> Any:
    if isinstance(biases, dict) and len(biases) > MOST_BIASES:  # before each is complained about
        raise ValueError(f"names more than {MOST_BIASES:,} tokens")
    return biases


def _few(given: Any) -> Any:
    if isinstance(given, list):  # before each is looked at
        within = (v for m in given if isinstance(m, dict) for v in m.values())
        if max(len(given), sum(len(v) for v in within if isinstance(v, list))) > MOST_PARTS:
            raise ValueError(f"has more than {MOST_PARTS:,} entries, or parts of them")
    return given


Few = BeforeValidator(_few)
"""For what a conversation consists of; the engine takes no more of them in all."""


class Strict(BaseModel):
    """Values of exactly the type that is asked for, and no field but those below."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _first_unknown(cls, given: Any) -> Any:
        """Names the first unknown field alone: pydantic would list a million of them."""
        if not isinstance(given, dict):
            return given
        unread = [name for name in given if name not in cls._names()]
        for name in unread:
            if not cls._may_be_there(name, given[name]):
                shown = name[:100].encode(errors="replace").decode()  # half characters too
                context = {"name": shown, "allowed": allowed(name)[1:]}
                raise PydanticCustomError("unknown_field", "{name}", context)
        return {k: v for k, v in given.items() if k not in unread} if unread else given

    @classmethod
    def _may_be_there(cls, name: str, value: Any) -> bool:
        """Whether a field that is none of these may be left unread."""
        return False

    @classmethod
    @cache
    def _names(cls) -> set[str]:
        """As a request writes them."""
        return {field.alias or name for name, field in cls.model_fields.items()}


Ignored = Annotated[Any, Field(description="Of no effect.")]
