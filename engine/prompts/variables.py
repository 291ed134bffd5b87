"""What a request tells the chat template beside its messages: variables of plain data."""

import json
from collections.abc import Mapping
from typing import Any

from engine.checks import reading
from engine.plain_data import MOST_DEPTH, depth_of
from engine.prompts.text_encoder import check_text
from vision_add_ons.errors import PromptError

MOST_VARIABLES = 2**20
"""Characters that a template's variables have, at most, written as JSON."""

OURS = frozenset(
    (
        "messages",
        "conversation",
        "conversations",
        "add_generation_prompt",
        "continue_final_message",
        "chat_template",
        "tokenize",
        "return_dict",
        "return_assistant_tokens_mask",
    )
)
"""Names that mean something to whoever renders a template."""


def read_variables(given: Any) -> dict[str, Any]:
    """A copy of variables for a chat template: names with plain data, as JSON has it.

    Raises `PromptError` for anything else, for names that are not a request's to give, or for more
    than `MOST_VARIABLES` characters or `MOST_DEPTH` levels.
    """
    if not isinstance(given, Mapping):
        raise PromptError(
            f"template must be a mapping of variables' names to values, not {type(given).__name__}"
        )
    with reading("the template's variables", PromptError):
        for name in given:
            if not isinstance(name, str) or not name.isidentifier():
                raise PromptError(f"template names a variable {name!r:.60}, which is no name")
            if name in OURS or name.endswith("_token"):
                raise PromptError(f"template names {name:.60}, which is not a request's to give")
        written = json.dumps(dict(given), ensure_ascii=False, allow_nan=False)
    if len(written) > MOST_VARIABLES:
        raise PromptError(
            f"template's variables have {len(written):,} characters, and at most "
            f"{MOST_VARIABLES:,} are taken"
        )
    if depth_of(written) > MOST_DEPTH:
        raise PromptError(f"template's variables are nested deeper than {MOST_DEPTH} levels")
    check_text(written)
    made: dict[str, Any] = json.loads(written)
    return made
