"""A tokenizer's chat template, applied to messages."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any


class Renderer:
    """Renders messages as a family's own processor does; any thread may call it.

    Whether an answer begins with a thought is the template's own choice: mlx-lm would ask for one
    wherever the tokenizer knows marks for it, and Gemma 4's templates think only when asked to.

    transformers' `apply_chat_template` goes through all messages three times before it renders
    them, at 20 microseconds for each. What it does there is for objects, and for keys of None:
    plain dictionaries are given to its `render_jinja_template`, as it would do itself.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(
        self, messages: Sequence[dict[str, Any]], variables: Mapping[str, Any] | None = None
    ) -> str:
        """The prompt of messages, up to where the answer begins.

        `messages` are dictionaries of plain data; those with `tool_calls` may have a `content` of
        None. `variables` are what the template is told beside them, plain data too. Raises
        whatever the template trips over.
        """
        told = variables or {}
        inner = self._plain
        if inner is None or any("tool_calls" in message for message in messages):
            rendered: Any = (inner or self._tokenizer).apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **told
            )
            return str(rendered)
        from transformers.utils.chat_template_utils import render_jinja_template

        (rendered,), _ = render_jinja_template(
            [messages],
            chat_template=inner.get_chat_template(tools=told.get("tools")),
            add_generation_prompt=True,
            **inner.special_tokens_map,
            **told,
        )
        return str(rendered)

    @cached_property
    def variables(self) -> frozenset[str]:
        """The names that the template looks up, of what it may be told beside messages."""
        inner = self._plain
        if inner is None:
            # One in Python: mlx-lm gives its own name to the switch that it takes.
            thinks = getattr(self._tokenizer, "has_thinking", False)
            return frozenset(["enable_thinking", "tools"] if thinks else ["tools"])
        from jinja2 import TemplateError, meta
        from transformers.utils.chat_template_utils import _compile_jinja_template

        try:
            source = inner.get_chat_template()
            parsed = _compile_jinja_template(source).environment.parse(source)
        except (TemplateError, ValueError):  # what is wrong with it, rendering says
            return frozenset()
        return frozenset(meta.find_undeclared_variables(parsed)) - {"messages"}

    @cached_property
    def _plain(self) -> Any:
        """transformers' own tokenizer, where its method would apply a Jinja text; else None."""
        from mlx_lm.tokenizer_utils import TokenizerWrapper
        from transformers import PreTrainedTokenizerBase as Base

        if not isinstance(self._tokenizer, TokenizerWrapper):
            return None
        if getattr(self._tokenizer, "_chat_template", None) is not None:
            return None  # one of mlx-lm's own, in Python
        inner = getattr(getattr(self._tokenizer, "get_chat_template", None), "__self__", None)
        plain = (
            isinstance(inner, Base)
            and type(inner).apply_chat_template is Base.apply_chat_template
            and type(inner).get_chat_template is Base.get_chat_template
        )
        return inner if plain else None
