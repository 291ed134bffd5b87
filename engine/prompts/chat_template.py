"""A loaded model's chat template: messages become the text of a prompt, and nothing is lost."""

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from engine.prompts.messages import Message
from engine.prompts.presence import Piece
from engine.prompts.template_form import (
    PARTS_FIRST,
    TEXT_FIRST,
    Content,
    TemplateForm,
    find_form,
)
from vision_add_ons.base import VisionAddOn
from vision_add_ons.errors import PromptError


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


class ChatTemplate:
    """Renders messages in the form that the template reads; any thread may call it."""

    def __init__(
        self, tokenizer: Any, add_on: VisionAddOn | None, sees: bool, source: str = ""
    ) -> None:
        """`sees` tells whether the checkpoint has eyes, also where `add_on` was not loaded.

        `source` is where the template stands, for errors.
        """
        self.told = f"the model's chat template ({source})" if source else "the chat template"
        """What errors call it."""
        self._sees = sees
        self._apply = Renderer(tokenizer)
        self._add_on = add_on
        # Private-use characters: no tokenizer, template or user has a meaning for them. The same
        # each time, so that a prompt begins as the one before did.
        self.private = f"\ue000{secrets.token_hex(8)}"
        """What a marker, and what stands for an image token in a message's text, begins with."""
        self.marks = _image_marks(tokenizer, add_on)
        """The texts of the family's image tokens, the one that a template writes first."""
        self.stand_ins = {self._private(f"t{i}"): mark for i, mark in enumerate(self.marks)}
        """What stands in a prompt for image tokens that a message's text holds as text."""

    @property
    def variables(self) -> frozenset[str]:
        """The names of what the template may be told beside messages."""
        return self._apply.variables

    @cached_property
    def form(self) -> TemplateForm:
        """The form in which the template reads messages, found at its first use."""
        preferred = PARTS_FIRST if self._sees else TEXT_FIRST
        return find_form(self._apply, preferred, self.marks)

    def pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """The texts of messages, in order, and the names of the tools that they call."""
        pieces = []
        for i, message in enumerate(messages):
            role = message.role
            alone = len(message.parts) == 1 and not message.tool_calls
            for part in message.parts:
                if isinstance(part, str):
                    pieces.append(Piece(i, role, self._hidden(part), alone))
            for call in message.tool_calls:
                pieces.append(Piece(i, message.role, call["function"]["name"], False, called=True))
        return pieces

    def render(
        self,
        messages: Sequence[Message],
        words: Sequence[str] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """What the tokenizer is given, but for markers and stand-ins.

        `words` stand in it in place of the messages' texts, and of the tools' names. `variables`
        are what the template is told beside the messages; see `engine.prompts.variables`.

        Raises `PromptError` for messages that the template refuses, or images that it has no place
        for.
        """
        texts = None if words is None else iter(words)
        images = sum(len(m.images) for m in messages)
        markers = [self._private(f"i{i}") for i in range(images)]
        rest = iter(markers)
        dictionaries = [self._dictionary(m, rest, texts) for m in messages]
        try:
            text = self._apply(dictionaries, variables and self._all_hidden(variables))
            if images:
                self._check_images(text, markers)
            if variables and "tools" in variables:
                self._check_tools(text, variables["tools"])
            return text if self._add_on is None else self._add_on.prepare_text(text)
        except PromptError:
            raise
        except Exception as error:
            # Templates are programs of the checkpoint's; they raise what they like.
            message = " ".join(str(error).split())
            raise PromptError(f"{self.told} refuses this: {message}") from error

    def _dictionary(
        self, message: Message, markers: Iterator[str], words: Iterator[str] | None
    ) -> dict[str, Any]:
        """A message as the template reads it."""
        way = self.form.texts[message.role]
        made: dict[str, Any] = {"role": message.role}
        if message.reasoning or message.tool_calls or message.tool_call_id or message.name:
            made |= _extras(message)
        if message.tool_calls:
            made["tool_calls"] = self.form.calls.of(message.tool_calls)
        if way is Content.TEXT and not message.images and not message.tool_calls and words is None:
            # Most messages, and soon done.
            made["content"] = self._hidden(message.text)
            return made
        parts = []
        own = []
        for part in message.parts:
            if isinstance(part, str):
                text = self._hidden(part) if words is None else next(words)
                parts.append({"type": "text", "text": text})
            else:
                own.append(next(markers))
                parts.append({"type": "image"})
        if words is not None:
            for call in made.get("tool_calls", ()):
                call["function"]["name"] = next(words)
        if own and self._add_on is not None:
            made = self._add_on.place_images({**made, "content": parts}, own)
            if not isinstance(made["content"], list):  # in the form of the family's own template
                return made
            parts = made["content"]
            if any(part.get("type") == "image" for part in parts):
                way = self._way_of_images(message.role)
        silent = not parts and message.tool_calls
        made["content"] = self.form.calls.content if silent else way.of(parts)
        return made

    def _way_of_images(self, role: str) -> Content:
        way = self.form.images.get(role)
        if way is not None or not self.form.found:
            return way or Content.PARTS
        if self.form.images:
            raise PromptError(
                f"{self.told} takes no pictures in {role} messages; give them with a user message"
            )
        instead = f", with {self.marks[0]} for each picture" if self.marks else ""
        raise PromptError(
            f"{self.told} has no place for pictures; load the checkpoint with the "
            "one of the original model (chat_template.jinja), or give the whole prompt as one "
            f"text instead{instead}"
        )

    def _check_images(self, text: str, markers: Sequence[str]) -> None:
        """Raises `PromptError` for a rendered text that has not one place for each image."""
        found = re.findall(self.private + "-i[0-9]+\ue001", text)
        if found:
            if found == list(markers):
                return
        elif not self.marks or sum(map(text.count, self.marks)) == len(markers):
            return
        raise PromptError(
            f"{self.told} leaves out, repeats or moves pictures of these messages; "
            "give them with user messages, or the whole prompt as one text"
        )

    def _check_tools(self, text: str, tools: Any) -> None:
        """Raises `PromptError` for a rendered text in which a tool is missing."""
        for tool in tools if isinstance(tools, list) else ():
            name = tool.get("function", {}).get("name") if isinstance(tool, Mapping) else None
            if isinstance(name, str) and name not in text:
                raise PromptError(f"{self.told} leaves out the tool {name:.128}")

    def _hidden(self, text: str) -> str:
        """A message's text with image tokens that stand in it as text hidden from the add-on."""
        for stand_in, mark in self.stand_ins.items():
            if mark in text:
                text = text.replace(mark, stand_in)
        return text

    def _all_hidden(self, value: Any) -> Any:
        """The same for all texts of plain data."""
        if isinstance(value, str):
            return self._hidden(value)
        if isinstance(value, Mapping):
            return {key: self._all_hidden(own) for key, own in value.items()}
        return [self._all_hidden(own) for own in value] if isinstance(value, list) else value

    def shown(self, text: str) -> str:
        """A text with image tokens in place of what stands for them."""
        for stand_in, mark in self.stand_ins.items():
            text = text.replace(stand_in, mark)
        return text.replace(self.private, "")

    def _private(self, name: str) -> str:
        return f"{self.private}-{name}\ue001"


def _extras(message: Message) -> dict[str, Any]:
    """What a message has beside its parts, by the names that templates know."""
    extras = {
        "reasoning_content": message.reasoning,
        "tool_call_id": message.tool_call_id,
        "name": message.name,
    }
    return {key: value for key, value in extras.items() if value}


def _image_marks(tokenizer: Any, add_on: VisionAddOn | None) -> tuple[str, ...]:
    """The texts of a family's image tokens, the one that a template is to write first."""
    if add_on is None:
        return ()
    if add_on.image_marks or add_on.image_token_id is None:
        return add_on.image_marks
    return (tokenizer.decode([add_on.image_token_id], skip_special_tokens=False),)
