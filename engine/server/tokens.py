"""Token ids as the texts and bytes that log-probabilities are told with."""

from engine.engine import Engine

# The 256 characters by which byte-level BPE writes bytes (GPT-2's table): those that can be seen
# stand for themselves, the others follow from U+0100 on.
_SEEN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES = {chr(byte): byte for byte in _SEEN}
_BYTES |= {chr(0x100 + i): b for i, b in enumerate(sorted(set(range(256)) - set(_SEEN)))}


class TokenTexts:
    """What single tokens say. Keeps what it was asked once: a vocabulary at most."""

    def __init__(self, engine: Engine) -> None:
        builder = engine._builder()
        self._decode = builder._decode
        self._piece = getattr(builder._tokenizer, "convert_ids_to_tokens", None)
        # Some tokenizers drop the space that a text begins with; after a token they keep it.
        self._before = builder.encode("a")
        self._prefix = self._decode(self._before)
        self._known: dict[int, tuple[str, list[int] | None]] = {}

    def __call__(self, token: int) -> tuple[str, list[int] | None]:
        """The text of a token, and its bytes, None if they are not known.

        As OpenAI does, bytes that are no whole characters are told as `bytes:\\xe2\\x80`.
        """
        known = self._known.get(token)
        if known is None:
            known = self._known[token] = self._look_up(token)
        return known

    def _look_up(self, token: int) -> tuple[str, list[int] | None]:
        text = self._decode([*self._before, token]).removeprefix(self._prefix)
        if "\ufffd" not in text:
            return text, list(text.encode())
        piece = self._piece(token) if self._piece is not None else None
        if not isinstance(piece, str):
            return text, None
        if len(piece) == 6 and piece.startswith("<0x"):  # SentencePiece's way to write a byte
            data = [int(piece[3:5], 16)]
        elif all(character in _BYTES for character in piece):
            data = [_BYTES[character] for character in piece]
        else:
            return text, None
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data), data
