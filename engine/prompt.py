"""Messages and pictures become a `Prompt`: token ids with placeholders, spans, cache key."""

import hashlib
import secrets
import threading
from bisect import bisect_left
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from engine.images import LoadedPicture, load_pictures
from engine.messages import Message, read_messages
from engine.pieces import piece_bytes
from engine.template_faults import picture_fault
from vision_add_ons.base import ExpandedPrompt
from vision_add_ons.errors import ImageCountError, ImageError, PromptError

if TYPE_CHECKING:
    from model_kit.kit import ModelKit

PROBE = "Probe: naïve  text,\n\twith <n>, 日本 and 🦊"


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
        # Fast tokenizers may be reconfigured by a call, so calls must not overlap.
        self._lock = threading.Lock()
        # The part that knows where tokens begin; a tokenizer may do more than it does.
        backend = getattr(kit.tokenizer, "backend_tokenizer", None)
        same = backend and backend.encode(PROBE, add_special_tokens=False).ids
        self._backend = backend if same == self._encode(PROBE) else None

    def build(
        self,
        prompt: str | Sequence[Any],
        images: Sequence[Any] = (),
        max_image_size: int | None = None,
    ) -> Prompt:
        """A prompt of a text as it stands, of token ids, or of messages by the chat template.

        Pictures whose longer side exceeds `max_image_size` pixels are shrunk to it. Raises
        `PromptError`, `ImageError` or `ImageCountError`.
        """
        if isinstance(prompt, str):
            _check_text(prompt)
            if self._add_on is not None:
                prompt = self._add_on.prepare_text(prompt)
            with self._lock:
                tokens = self._encode_raw(prompt)
            built = self._place(tokens, _load(images, max_image_size), None)
        elif not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray | memoryview):
            raise PromptError("a prompt is a text, a list of token ids or a list of messages")
        elif prompt and all(isinstance(t, int) and not isinstance(t, bool) for t in prompt):
            tokens = [int(t) for t in prompt]
            built = self._place(tokens, _load(images, max_image_size), None)
        else:
            built = self._from_messages(read_messages(prompt, images), max_image_size)
        if not built.tokens:
            raise PromptError("the prompt is empty; give it some text")
        return built

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, with no special tokens added. Raises `PromptError`."""
        _check_text(text)
        with self._lock:
            return self._encode(text)

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

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _encode_raw(self, text: str) -> list[int]:
        # As mlx-lm does: a text that brings its own BOS gets no second one.
        bos = self._tokenizer.bos_token
        add = bos is None or not text.startswith(bos)
        return list(self._tokenizer.encode(text, add_special_tokens=add))

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
        _check_text(text)
        with self._lock:
            tokens, starts = self._encode_with_starts(text)
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

    def _encode_with_starts(self, text: str) -> tuple[list[int], list[int] | None]:
        """Token ids and the index in `text` where each begins, or None where that is unknown."""
        if self._backend is None:
            return self._encode(text), None
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets]

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
            if message.tokens:
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
            tokens += self._encode(text[done:place])
            positions.append(len(tokens))
            done = place
        return self._place(tokens + self._encode(text[done:]), pictures, positions)


def _load(images: Sequence[Any], max_image_size: int | None) -> list[LoadedPicture]:
    return [picture.within(max_image_size) for picture in load_pictures(images)]


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise PromptError(f"a text is wanted, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"the text holds half a character (U+{ord(text[error.start]):04X}) at {error.start}; "
            "decode it anew, with errors replaced"
        ) from error


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
