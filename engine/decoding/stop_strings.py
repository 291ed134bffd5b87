"""Ending an answer at a stop string, whatever the borders between the tokens."""

from collections.abc import Sequence


class StopStrings:
    """Watches streamed text for stop strings, as if it came one character at a time.

    The stop string that ends first wins; of several that end together, the longest. Text that may
    still become a stop string is held back. `matched` is the stop string found, or None. No
    stop string is empty: `GenerationOptions` takes none that is.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        # Longest first: of those that end at one character, the first found is the right one.
        self._stops = sorted(dict.fromkeys(stops), key=len, reverse=True)
        self._borders = [_border_lengths(stop) for stop in self._stops]
        self._progress = [0] * len(self._stops)  # how much of each stop the text ends with
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """The text that this makes safe to release; after a match, always the empty string."""
        if self.matched is not None:
            return ""
        seen = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            for i, stop in enumerate(self._stops):
                length = self._progress[i]
                while length and stop[length] != character:
                    length = self._borders[i][length]
                if stop[length] == character:
                    length += 1
                if length == len(stop):
                    self.matched, self._held = stop, ""
                    return seen[: end - length]
                self._progress[i] = length
        released = len(seen) - max(self._progress, default=0)
        self._held = seen[released:]
        return seen[:released]

    def flush(self) -> str:
        """What was held back. Called when the answer has ended by itself."""
        held, self._held = self._held, ""
        self._progress = [0] * len(self._stops)
        return held


def _border_lengths(stop: str) -> list[int]:
    """At index i: the longest string, shorter than i, that `stop[:i]` both starts and ends with.

    That much is still matched when the character after `stop[:i]` does not fit (the failure
    function of Knuth, Morris and Pratt), which makes the search linear.
    """
    lengths = [0, 0]
    for character in stop[1:]:
        length = lengths[-1]
        while length and stop[length] != character:
            length = lengths[length]
        lengths.append(length + (stop[length] == character))
    return lengths
