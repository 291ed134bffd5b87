"""An answer that may call tools: its text on the way to events of text and of calls."""

from typing import TYPE_CHECKING

from engine.events import ToolCall, ToolCallDelta

if TYPE_CHECKING:
    from engine.decoding.channels import Channels, Piece
    from engine.tools.reader import CallReader, Told

CallEvent = ToolCallDelta | ToolCall


class Calling:
    """For the engine's thread alone."""

    def __init__(self, channels: "Channels", reader: "CallReader") -> None:
        self._channels = channels
        self.reader = reader
        """What the calls are read by."""

    def feed(self, text: str) -> "tuple[str, list[CallEvent]]":
        """What a text adds to what is said, and to calls."""
        return self._sorted(self._channels.feed(text))

    def end(self, by_itself: bool) -> "tuple[str, list[CallEvent]]":
        """What was held back; `by_itself` if the model ended the answer."""
        said, events = self._sorted(self._channels.flush())
        more, others = _apart(self.reader.end(by_itself))
        return said + more, [*events, *others]

    def _sorted(self, pieces: "list[Piece]") -> "tuple[str, list[CallEvent]]":
        told: list[Told] = []
        for piece in pieces:
            if piece.channel != "tool":
                told += self.reader.say(piece.text)
            elif not self.reader.calling:
                told += self.reader.begin(piece.text)
            elif piece.ends:
                told += self.reader.close(piece.text)
            else:
                told += self.reader.call(piece.text)
        return _apart(told)


def _apart(told: "list[Told]") -> "tuple[str, list[CallEvent]]":
    said = "".join(one for one in told if isinstance(one, str))
    return said, [one for one in told if not isinstance(one, str)]
