"""Messages and pictures become a `Prompt`: token ids with placeholders, spans, cache key."""

import hashlib
import secrets
import threading
from bisect import bisect_left
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from engine.checks import reading
from engine.images import LoadedPicture, load_pictures
from engine.messages import Message, read_messages
from engine.pieces import piece_bytes
from engine.template_faults import picture_fault
from engine.text_encoder import (
    LONG_TEXT,
    TextEncoder,
    check_length,
    check_text,
    unless_cancelled,
)
from vision_add_ons.base import ExpandedPrompt
from vision_add_ons.errors import ImageCountError, ImageError, PromptError

if TYPE_CHECKING:
    from model_kit.kit import ModelKit


@dataclass(frozen=True)
class Prompt(ExpandedPrompt):
    """An expanded prompt and what the prompt cache knows it by."""

    @cached_property
    def key(self) -> list[Hashable]:
        """What the prompt cache compares: ids, with a picture's digest in place of its ids.

        Two pictures of one size make the same placeholders, so the ids alone would not do. Where
        tokens see each other whole, each stands for all of them.
        """
        key: list[Hashable] = list(self.tokens)
        for span in self.spans:
            key[span.start : span.end] = [span.picture.digest] * span.length
        for start, end in self.bidirectional:
            whole = hashlib.sha256(repr(key[start:end]).encode()).hexdigest()
            key[start:end] = [whole] * (end - start)
        return key

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
        self._sees = kit.config.add_on is not None
        self._vocab_size = kit.vocab_size
        self._encoder = TextEncoder(kit.tokenizer)
        self.nothing = Prompt([])
        """What a request has that was cancelled before its prompt was there."""

    def build(
        self,
        prompt: str | Sequence[Any],
        images: Sequence[Any] = (),
        max_image_size: int | None = None,
        cancel: threading.Event | None = None,
    ) -> Prompt:
        """A prompt of a text as it stands, of token ids, or of messages by the chat template.

        Pictures whose longer side exceeds `max_image_size` pixels are shrunk to it. The text, that
        of all messages together, may have `MOST_TEXT` characters. Raises `PromptError`,
        `ContextExceeded`, `ImageError` or `ImageCountError`, and for a long text `Cancelled` soon
        after `cancel` was set.
        """
        length = 0
        if isinstance(prompt, str):
            check_text(prompt)
            length = len(prompt)
            make = partial(self._from_text, prompt, images, max_image_size)
        elif not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray | memoryview):
            raise PromptError("a prompt is a text, a list of token ids or a list of messages")
        elif (tokens := _as_tokens(prompt)) is not None:
            make = partial(self._from_tokens, tokens, images, max_image_size)
        else:
            messages = read_messages(prompt, images)
            length = sum(len(m.text) for m in messages)
            make = partial(self._from_messages, messages, max_image_size)
        check_length(length)
        if cancel is not None and length > LONG_TEXT:
            built = unless_cancelled(make, cancel)
        else:
            built = make()
        if not built.tokens:
            raise PromptError("the prompt is empty; give it some text")
        return built

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

    def _from_text(self, text: str, images: Sequence[Any], max_image_size: int | None) -> Prompt:
        if self._add_on is not None:
            text = self._add_on.prepare_text(text)
        return self._from_tokens(self._encoder.encode_raw(text), images, max_image_size)

    def _from_tokens(
        self, tokens: list[int], images: Sequence[Any], max_image_size: int | None
    ) -> Prompt:
        pictures = [picture.within(max_image_size) for picture in load_pictures(images)]
        return self._place(tokens, pictures, None)

    def _place(
        self, tokens: list[int], pictures: Sequence[LoadedPicture], positions: list[int] | None
    ) -> Prompt:
        if pictures and self._add_on is None:
            why = "was loaded without its eyes" if self._sees else "is text only"
            raise ImageError(f"this model ({self._model}) {why}, so it cannot look at pictures")
        if self._add_on is None:
            return Prompt(tokens)
        if positions is None and self._add_on.image_token_id is not None:
            positions = []
        elif positions is None:
            bos = self._tokenizer.bos_token_id
            start = 1 if tokens and bos is not None and tokens[0] == bos else 0
            positions = [start] * len(pictures)
        expanded = self._add_on.expand_prompt(tokens, pictures, positions)
        return Prompt(expanded.tokens, expanded.spans, expanded.bidirectional)

    def _from_messages(self, messages: list[Message], max_image_size: int | None) -> Prompt:
        if not self._tokenizer.has_chat_template:
            raise PromptError(
                "this model has no chat template; give the whole prompt as one text instead"
            )
        try:
            return self._templated(messages, max_image_size)
        except (PromptError, ImageCountError) as error:
            if self._add_on is not None and any(m.pictures for m in messages):
                marks = self._add_on.image_marks
                fault = picture_fault(messages, marks, lambda m: self._templated(m, None))
                if fault is not None:
                    raise PromptError(fault) from error
            raise

    def _templated(self, messages: list[Message], max_image_size: int | None) -> Prompt:
        nonce = secrets.token_hex(8)
        pictures = [p.within(max_image_size) for m in messages for p in m.pictures]
        # Private-use characters: no tokenizer, template or user has a meaning for them.
        markers = [f"\ue000{nonce}-{i}\ue001" for i in range(len(pictures))]
        rendered = self._render(messages, markers)
        text, places = _take_out(rendered, markers)
        check_text(text)
        if not places and not any(m.tokens for m in messages):
            return self._place(self._encoder.encode(text), pictures, [])
        tokens, starts = self._encoder.encode_with_starts(text)
        if starts is None:
            return self._place_by_parts(text, places, pictures)
        tokens, starts = self._reuse_answers(messages, text, tokens, starts)
        positions = [bisect_left(starts, place) for place in places]
        borders = [*starts, len(text)]
        if any(borders[i] != place for i, place in zip(positions, places, strict=True)):
            return self._place_by_parts(text, places, pictures)
        return self._place(tokens, pictures, positions)

    def _render(self, messages: list[Message], markers: list[str]) -> str:
        marker = iter(markers)
        dictionaries = []
        for m in messages:
            own = [next(marker) for _ in m.pictures]
            if self._add_on is not None:
                text = m.text
                for mark in self._add_on.image_marks if m.role == "assistant" else ():
                    text = text.replace(mark, "")
                dictionaries.append(self._add_on.template_message(m.role, text, own))
            else:
                dictionaries.append({"role": m.role, "content": "".join(own) + m.text})
        try:
            rendered = self._tokenizer.apply_chat_template(
                dictionaries, tokenize=False, add_generation_prompt=True
            )
            return rendered if self._add_on is None else self._add_on.prepare_text(rendered)
        except Exception as error:
            # Templates are programs of the checkpoint's; they raise what they like.
            message = " ".join(str(error).split())
            raise PromptError(f"the model's chat template refuses this: {message}") from error

    def _reuse_answers(
        self, messages: list[Message], text: str, tokens: list[int], starts: list[int]
    ) -> tuple[list[int], list[int]]:
        """Put the ids that answers were generated as in place of those their text encodes to.

        A model does not always write a text with the tokens that a tokenizer would take, and the
        KV cache holds what it wrote. Only where the decoded prompt stays the same to the letter.
        """
        answers = []
        done = 0
        for message in messages:
            begin = text.find(message.text, done)
            if begin < 0:
                continue
            done = begin + len(message.text)
            # Another model's ids may lie outside this one's vocabulary.
            if message.tokens and max(message.tokens) < self._vocab_size:
                answers.append((begin, done, list(message.tokens)))
        for begin, end, generated in reversed(answers):
            first, last = bisect_left(starts, begin), bisect_left(starts, end)
            # The space before a word may belong to the word's token.
            for i in (first, first - 1):
                if i < 1 or tokens[i:last] == generated:
                    break
                before = tokens[i - 1 : i]  # decoders treat the first token in a way of its own
                if self.decode(before + generated) == self.decode(before + tokens[i:last]):
                    spread = [starts[i] if i < len(starts) else end] * len(generated)
                    tokens = tokens[:i] + generated + tokens[last:]
                    starts = starts[:i] + spread + starts[last:]
                    break
        return tokens, starts

    def _place_by_parts(
        self, text: str, places: list[int], pictures: list[LoadedPicture]
    ) -> Prompt:
        """Encode the text between the pictures piece by piece: no token spans a picture."""
        tokens: list[int] = []
        positions = []
        done = 0
        for place in places:
            tokens += self._encoder.encode(text[done:place])
            positions.append(len(tokens))
            done = place
        return self._place(tokens + self._encoder.encode(text[done:]), pictures, positions)


def _as_tokens(prompt: Sequence[Any]) -> list[int] | None:
    """Token ids as they are; None for a prompt of something else."""
    with reading("the prompt", PromptError):
        ids = all(isinstance(t, int) and not isinstance(t, bool) for t in prompt)
        return [int(t) for t in prompt] if prompt and ids else None


def _take_out(rendered: str, markers: list[str]) -> tuple[str, list[int]]:
    """The text without the markers, and where in it each stood.

    No place at all where the template has image tokens of its own. Raises `PromptError` if the
    template dropped, repeated or reordered some of them.
    """
    if not any(marker in rendered for marker in markers):
        return rendered, []
    text = ""
    places = []
    rest = rendered
    for marker in markers:
        before, found, rest = rest.partition(marker)
        if not found or marker in rest:
            raise PromptError("the model's chat template has no place for pictures here")
        text += before
        places.append(len(text))
    return text + rest, places
