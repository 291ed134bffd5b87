"""Messages and pictures become a `Prompt`: token ids with placeholders, spans, cache key."""

import hashlib
import json
import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from engine.checks import no_token_id, reading
from engine.images import LoadedPicture, load_pictures
from engine.pieces import piece_bytes
from engine.prompts.chat_template import ChatTemplate
from engine.prompts.message_encoder import MessageEncoder
from engine.prompts.messages import Message, check_results, read_messages
from engine.prompts.text_encoder import (
    LONG_TEXT,
    TextEncoder,
    check_length,
    check_text,
    unless_cancelled,
)
from engine.prompts.thought import Switch, Thought
from vision_add_ons.base import ExpandedPrompt
from vision_add_ons.errors import ImageError, OptionError, PromptError
from vision_add_ons.token_ids import TokenIds

if TYPE_CHECKING:
    from engine.tools.telling import Telling
    from engine.tools.tool import Tool
    from model_kit.kit import ModelKit


MOST_WRITTEN = 32
"""Tokens that a template writes behind the mark of a thought that it begins, at most."""


@dataclass(frozen=True)
class Prompt(ExpandedPrompt):
    """An expanded prompt and what the prompt cache knows it by."""

    thought: Thought | None = None
    """How what a chat template wrote for the answer ends; None if no template wrote the prompt."""
    border: int | None = None
    """How many tokens are before the thought that the template began, which it leaves out of the
    prompts of later turns."""

    def fits(self, vocab_size: int) -> bool:
        """Whether all its ids are of a vocabulary."""
        return TokenIds(self.tokens).within(vocab_size)

    @cached_property
    def key(self) -> Sequence[Hashable]:
        """What the prompt cache compares: ids, with a picture's digest in place of its ids.

        Two pictures of one size make the same placeholders, so the ids alone would not do. Where
        tokens see each other whole, each stands for all of them.
        """
        if not self.spans and not self.bidirectional:
            return self.tokens
        key: list[Hashable] = list(self.tokens)
        for span in self.spans:
            key[span.start : span.end] = [span.picture.digest] * span.length
        for start, end in self.bidirectional:
            whole = hashlib.sha256(repr(key[start:end]).encode()).hexdigest()
            key[start:end] = [whole] * (end - start)
        return tuple(key)

    def cut(self, length: int) -> int:
        """The longest start of at most `length` tokens that cuts no picture in two."""
        for span in self.spans:
            if span.start < length < span.end:
                return span.start
        return length


class PromptBuilder:
    """Builds prompts for one loaded model; any thread may call it."""

    def __init__(self, kit: "ModelKit") -> None:
        self._tokenizer = kit.tokenizer
        self._add_on = kit.add_on
        self._model = kit.config.model_type
        self._vocab_size = kit.vocab_size
        self._sees = kit.config.add_on is not None
        self._encoder = TextEncoder(kit.tokenizer)
        template = ChatTemplate(kit.tokenizer, kit.add_on, self._sees, kit.config.chat_template)
        self._template = template
        thinks = kit.tokenizer.has_thinking
        self._messages = MessageEncoder(
            template,
            self._encoder,
            self.decode,
            kit.vocab_size,
            special=self._sees,
            thought=(kit.tokenizer.think_start, kit.tokenizer.think_end) if thinks else None,
        )
        self.nothing = Prompt([])
        """What a request has that was cancelled before its prompt was there."""

    def build(
        self,
        prompt: str | Sequence[Any],
        images: Sequence[Any] = (),
        max_image_size: int | None = None,
        cancel: threading.Event | None = None,
        variables: Mapping[str, Any] | None = None,
        thinking: bool | None = None,
        tools: "Sequence[Tool]" = (),
        context: int | None = None,
    ) -> Prompt:
        """A prompt of a text as it stands, of token ids, or of messages by the chat template.

        `variables` are what the template is told beside messages, as `read_variables` gives them;
        `thinking` is `GenerationOptions.thinking`; `tools` are told in the way that the model
        knows. Pictures whose longer side exceeds `max_image_size` pixels are shrunk to it. The
        text, that of all messages together, may have `MOST_TEXT` characters; far more tokens than
        `context` are refused before they are all encoded. Raises `PromptError`,
        `ContextExceeded`, `ImageError`, `ImageCountError` or `OptionError`, and for a long text
        `Cancelled` soon after `cancel` was set.
        """
        length, parts = 0, 1
        # A chat's messages were read when they were said.
        read = type(prompt) is list and all(isinstance(m, Message) for m in prompt)
        if isinstance(prompt, str):
            check_text(prompt)
            length = len(prompt)
            make = partial(self._from_text, prompt, images, max_image_size, context)
        elif not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray | memoryview):
            raise PromptError("a prompt is a text, a list of token ids or a list of messages")
        elif not read and (tokens := self._as_tokens(prompt)) is not None:
            make = partial(self._from_tokens, tokens, images, max_image_size)
        else:
            messages: Sequence[Any] = prompt
            if not (read and prompt and type(images) is tuple and not images):
                messages = read_messages(prompt, images)
            if any(message.role == "tool" for message in messages):
                check_results(messages)
            if tools:  # without, calls and results are the template's own matter
                messages, told = self.telling.messages(messages, tools)
                variables = {**(variables or {}), **told}
            length = sum(m.length for m in messages)
            parts = max(len(messages), sum(map(len, map(attrgetter("parts"), messages))))
            if variables:
                length += len(json.dumps(variables, ensure_ascii=False))
            make = partial(
                self._from_messages, messages, max_image_size, variables, thinking, context
            )
        check_length(length, parts)
        if cancel is not None and length > LONG_TEXT:
            built = unless_cancelled(make, cancel)
        else:
            built = make()
        if not built.tokens:
            raise PromptError("the prompt is empty; give it some text")
        if built.thought is None:  # no template wrote it
            if tools:
                raise OptionError(
                    "tools must come with messages, which a chat template writes them to"
                )
            if variables:
                raise PromptError("template goes with messages; this prompt is written without one")
            if thinking:
                raise OptionError("thinking goes with messages; this prompt is written without one")
        return built

    @property
    def variables(self) -> frozenset[str]:
        """The names of what the chat template may be told beside messages; none without one."""
        return self._template.variables if self._tokenizer.has_chat_template else frozenset()

    @cached_property
    def _switch(self) -> Switch:
        made = self._tokenizer
        reasons = any(
            at == "reasoning" for edges in made.response_transitions.values() for _, at in edges
        )
        return Switch(self.variables, made.has_thinking or reasons)

    @property
    def thoughts(self) -> str:
        """Whether the model thinks before it answers, and how that is told, in one line."""
        made = self._tokenizer
        marks = (made.think_start, made.think_end) if made.has_thinking else None
        return self._switch.about(marks)

    @cached_property
    def telling(self) -> "Telling":
        """How the model is told of tools, and writes calls."""
        from engine.tools.telling import Telling

        return Telling(self._tokenizer, self._template)

    def token_of(self, text: str) -> int | None:
        """The token that is a text, if there is one."""
        token = self._tokenizer.convert_tokens_to_ids(text)
        known = isinstance(token, int) and token != self._tokenizer.unk_token_id
        return token if known else None

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, with no special tokens added.

        Raises `PromptError`, or `ContextExceeded` for more than `MOST_TEXT` characters.
        """
        check_text(text)
        check_length(len(text))
        return self._encoder.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special ones written out."""
        text: str = self._tokenizer.decode(
            list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def token_bytes(self, token: int) -> bytes | None:
        """What a token stands for, as far as the tokenizer's way to write it is known."""
        before = self._tokenizer.encode("a", add_special_tokens=False)
        text = self.decode([*before, token]).removeprefix(self.decode(before))
        if "\ufffd" not in text:
            return text.encode()
        piece = getattr(self._tokenizer, "convert_ids_to_tokens", lambda token: None)(token)
        return piece_bytes(piece) if isinstance(piece, str) else None

    def _from_text(
        self, text: str, images: Sequence[Any], max_image_size: int | None, context: int | None
    ) -> Prompt:
        if self._add_on is not None:
            text = self._add_on.prepare_text(text)
        self._encoder.check_fits(text, context)
        return self._from_tokens(self._encoder.encode_raw(text), images, max_image_size)

    def _from_tokens(
        self, tokens: Sequence[int], images: Sequence[Any], max_image_size: int | None
    ) -> Prompt:
        pictures = [picture.within(max_image_size) for picture in load_pictures(images)]
        self._check_sight(pictures)
        if self._add_on is None:
            return Prompt(tokens)
        positions: list[int] | None = None
        if self._add_on.image_token_id is None:
            bos = self._tokenizer.bos_token_id
            start = 1 if tokens and bos is not None and tokens[0] == bos else 0
            positions = [start] * len(pictures)
        expanded = self._add_on.expand_prompt(tokens, pictures, positions)
        return Prompt(expanded.tokens, expanded.spans, expanded.bidirectional)

    def _from_messages(
        self,
        messages: Sequence[Message],
        max_image_size: int | None,
        variables: Mapping[str, Any] | None,
        thinking: bool | None,
        context: int | None,
    ) -> Prompt:
        if not self._tokenizer.has_chat_template:
            raise PromptError(
                "this model has no chat template; give the whole prompt as one text instead"
            )
        pictures = [p.within(max_image_size) for m in messages for p in m.images]
        if pictures:
            self._check_sight(pictures)
        told = variables if thinking is None else self._switch.told(thinking, variables)
        encoded = self._messages.encode(messages, told, context)
        if thinking is not None:
            self._switch.check(thinking, encoded.thought)
        expanded = ExpandedPrompt(encoded.tokens)
        if self._add_on is not None:
            tokens: Sequence[int] = encoded.tokens
            positions = encoded.positions
            if not pictures:
                positions = []
            elif encoded.typed and positions is None:
                tokens, positions = self._without_marks(tokens, encoded.typed)
            expanded = self._add_on.expand_prompt(tokens, pictures, positions)
        border = None if encoded.thought == "none" else self._border(expanded.tokens)
        return Prompt(
            expanded.tokens, expanded.spans, expanded.bidirectional, encoded.thought, border
        )

    def _border(self, tokens: Sequence[int]) -> int | None:
        """Where the thought begins that the template wrote at the end of a prompt."""
        end = list(tokens[-MOST_WRITTEN:])
        place: int = self._tokenizer.rfind_think_start(end)
        return None if place < 0 else len(tokens) - len(end) + place

    def _without_marks(
        self, tokens: Sequence[int], typed: list[int]
    ) -> tuple[Sequence[int], list[int]]:
        """Tokens without the template's image tokens, and where those stood.

        Those that stand in a message as text, at the indices `typed`, mark nothing, and stay.
        """
        assert self._add_on is not None
        mark = self._add_on.image_token_id
        kept: list[int] = []
        positions = []
        text = set(typed)
        for i, token in enumerate(tokens):
            if token == mark and i not in text:
                positions.append(len(kept))
            else:
                kept.append(token)
        return kept, positions

    def _as_tokens(self, prompt: Sequence[Any]) -> TokenIds | None:
        """Token ids as they are; None for a prompt of something else."""
        with reading("the prompt", PromptError):
            ids = all(isinstance(t, int) and not isinstance(t, bool) for t in prompt)
            try:
                return TokenIds(prompt) if prompt and ids else None
            except OverflowError as error:
                raise no_token_id(self._vocab_size) from error

    def _check_sight(self, pictures: Sequence[LoadedPicture]) -> None:
        if pictures and self._add_on is None:
            why = "was loaded without its eyes" if self._sees else "is text only"
            raise ImageError(f"this model ({self._model}) {why}, so it cannot look at pictures")
