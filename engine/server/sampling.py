"""What requests of all protocols may say of how they are to be answered."""

import re
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from engine.options import LARGEST
from engine.prompts.variables import read_variables
from engine.server.fields import OTHER_NAMES, changes_nothing, describe_fields
from engine.server.values import (
    MOST_BIASES,
    Bias,
    Count,
    CountOrAll,
    MaxTokens,
    Positive,
    Seed,
    StopText,
    Strict,
    Whole,
    not_many,
    within,
)
from vision_add_ons.errors import PromptError


def other(name: str) -> Any:
    return Field(None, description=f"Another name of {OTHER_NAMES[name]}.")


@cache
def _names_of(name: str) -> tuple[str, ...]:
    return name, *(other for other, ours in OTHER_NAMES.items() if ours == name)


class Sampling(Strict):
    """How an answer is drawn. Defaults are the model's own, which /v1/models tells."""

    model_config = ConfigDict(json_schema_extra=describe_fields)

    model: str | None = Field(None, description="The id that /v1/models tells.")
    max_tokens: MaxTokens | None = Field(
        None, description="-1, the default of chats: as many as the context holds."
    )
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the likeliest token.")
    top_p: float | None = within("top_p")
    top_k: CountOrAll | None = Field(None, description="Beside OpenAI's; 0 or -1 for all.")
    min_p: float | None = within("min_p", description="Beside OpenAI's.")
    seed: Seed | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = within(
        "repetition_penalty", description="Beside OpenAI's; 1 changes nothing."
    )
    penalty_context: Positive | None = Field(
        None,
        description="Beside OpenAI's: the tokens before, prompt included, that penalties look at.",
    )
    logit_bias: Annotated[dict[str, Bias], BeforeValidator(not_many)] | None = Field(
        None,
        max_length=MOST_BIASES,
        description="By the token's id, as a text.",
        json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,9}$"}},
    )
    draft_tokens: int | None = within(
        "draft_tokens",
        description="Beside OpenAI's: tokens guessed at once, if this server drafts; 0 for none.",
    )
    stream: bool | None = None
    user: str | None = Field(
        None,
        max_length=512,
        description="Whose request this is: a client's users take turns. Not kept.",
    )
    # What other servers call them.
    max_output_tokens: MaxTokens | None = other("max_output_tokens")
    num_predict: MaxTokens | None = other("num_predict")
    n_predict: MaxTokens | None = other("n_predict")
    repeat_penalty: float | None = within(
        "repetition_penalty", description="Another name of repetition_penalty."
    )
    repetition_context_size: Positive | None = other("repetition_context_size")
    repeat_last_n: Positive | None = other("repeat_last_n")
    random_seed: Seed | None = other("random_seed")
    num_draft_tokens: int | None = within(
        "draft_tokens", description="Another name of draft_tokens."
    )
    num_ctx: Annotated[int, Field(ge=2, le=LARGEST), Whole] | None = Field(
        None, description="A cap on prompt and answer together, in tokens."
    )

    @classmethod
    def _may_be_there(cls, name: str, value: Any) -> bool:
        return changes_nothing(name, value)

    def asked(self, name: str) -> Any:
        """A parameter by its own name or another; None if it is not given."""
        given = (getattr(self, other, None) for other in _names_of(name))
        return next((value for value in given if value is not None), None)

    @model_validator(mode="after")
    def _check(self) -> "Sampling":
        for name in set(OTHER_NAMES.values()):
            given = [n for n in _names_of(name) if getattr(self, n, None) is not None]
            if len(given) > 1:
                raise ValueError(f"{' and '.join(given)} are one thing; give one of them")
        for token in self.logit_bias or {}:
            if not re.fullmatch("[0-9]{1,9}", token):
                raise ValueError("logit_bias is keyed by token ids")
        return self


def _variables(given: dict[str, Any]) -> dict[str, Any]:
    try:
        return read_variables(given)
    except PromptError as error:
        raise ValueError(str(error)) from error


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Conversing(Sampling):
    """What requests that hold a conversation may say beside: of thoughts, and to its template."""

    enable_thinking: bool | None = Field(
        None, description="Beside OpenAI's: whether the model thinks first, where it can be told."
    )
    max_thinking_tokens: Count | None = Field(
        None, description="Beside OpenAI's: a thought is ended when it has so many tokens."
    )
    thinking_budget: Count | None = other("thinking_budget")
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(_variables)] | None = Field(
        None, description="Beside OpenAI's: variables for the chat template, of plain data."
    )

    @property
    def effort(self) -> Effort | None:
        """How much it is to think; each protocol has a field of its own for that."""
        return None

    @property
    def thinking(self) -> bool | None:
        """Whether it is to think, of what is not asked for by its effort."""
        return False if self.effort == "none" else self.enable_thinking
