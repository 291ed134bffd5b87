"""What wakes coroutines when another thread has something for them; no thread waits for it."""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import Future


class Bell:
    """Wakes all that wait, whatever event loops they run in."""

    def __init__(self) -> None:
        # Appending and taking are atomic: a lock could be held by the very thread that is
        # interrupted to ring.
        self._waiting: deque[Future[None]] = deque()

    def ring(self) -> None:
        """From any thread, after what is waited for has become true."""
        while self._waiting:
            try:
                future = self._waiting.popleft()
            except IndexError:  # it was woken, or left, a moment ago
                return
            with suppress(RuntimeError):  # its loop is closed; then nobody waits there any more
                future.get_loop().call_soon_threadsafe(_wake, future)

    async def wait(self, there: Callable[[], bool]) -> None:
        """Wait until the bell is rung, unless what is waited for is `there()` already."""
        from asyncio import get_running_loop  # whoever comes here has it loaded

        future = get_running_loop().create_future()
        self._waiting.append(future)
        if there():  # since a moment ago, when nobody was to be woken yet
            self._leave(future)
            return
        try:
            await future
        except BaseException:
            self._leave(future)
            raise

    def _leave(self, future: "Future[None]") -> None:
        with suppress(ValueError):  # it is being rung for
            self._waiting.remove(future)


def _wake(future: "Future[None]") -> None:
    if not future.done():
        future.set_result(None)
