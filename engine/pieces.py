"""How tokenizers write bytes that are no whole characters."""

# The 256 characters by which byte-level BPE writes bytes (GPT-2's table): those that can be seen
# stand for themselves, the others follow from U+0100 on.
_SEEN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES = {chr(byte): byte for byte in _SEEN}
_BYTES |= {chr(0x100 + i): b for i, b in enumerate(sorted(set(range(256)) - set(_SEEN)))}


def piece_bytes(piece: str) -> bytes | None:
    """The bytes of a vocabulary's entry that decodes to no whole characters; None if unknown."""
    if len(piece) == 6 and piece.startswith("<0x"):  # SentencePiece's way
        return bytes([int(piece[3:5], 16)])
    if all(character in _BYTES for character in piece):
        return bytes(_BYTES[character] for character in piece)
    return None
