"""The desktop example's window as the tests see it."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from PySide6 import QtCore, QtGui, QtTest, QtWidgets

# Python collects garbage on whichever thread is at work, and PySide6 cannot end a window on another
# than its own, nor a timer, nor a class of theirs. An app has one as long as it runs; here are
# several.
KEPT: list["Observed"] = []


class Observed:
    """A window, what it was told, and whether its event loop turned."""

    def __init__(self, example: ModuleType, model: str | Path, file: Path) -> None:
        stages: list[tuple[str, int, int]] = []

        class Window(example.Window):  # type: ignore[name-defined,misc]
            """Sees all that the thread at work tells: it is at work before anybody can connect."""

            def show_progress(self, *told: Any) -> None:
                stages.append(told)
                super().show_progress(*told)

        self.stages = stages
        self.texts: list[bool] = []  # for each, whether more could be asked by then
        self.ticked = threading.Event()
        self.window = Window(str(model), file)
        KEPT.append(self)
        self.window.said.connect(self.note)
        self.timer = QtCore.QTimer(interval=10)
        self.timer.timeout.connect(self.ticked.set)
        self.timer.start()
        self.window.show()

    def note(self, part: Any, role: str) -> None:
        if part and isinstance(part, str) and not role:
            self.texts.append(self.window.send.isEnabled())

    def until(self, condition: Callable[[], Any], seconds: float = 600) -> None:
        """Let the event loop turn until something holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.log
            loop = QtCore.QEventLoop()
            QtCore.QTimer.singleShot(5, loop.quit)
            loop.exec()

    def ready(self) -> "Observed":
        self.until(self.window.send.isEnabled)
        return self

    def begun_anew(self) -> "Observed":
        self.window.new.trigger()
        assert self.log == ""
        return self

    def begin(self, question: str) -> None:
        self.texts.clear()
        QtTest.QTest.keyClicks(self.window.entry, question)
        QtTest.QTest.keyClick(self.window.entry, QtCore.Qt.Key.Key_Return)
        assert not self.window.send.isEnabled()

    def ask(self, question: str) -> str:
        """What the window shows after the question, when all is said."""
        self.begin(question)
        self.ready()
        return self.log.rpartition(question)[2].strip()

    def drop(self, *files: Path) -> None:
        content = QtCore.QMimeData()
        content.setUrls([QtCore.QUrl.fromLocalFile(str(file)) for file in files])
        button, key = QtCore.Qt.MouseButton.LeftButton, QtCore.Qt.KeyboardModifier.NoModifier
        action = QtCore.Qt.DropAction.CopyAction
        entering = QtGui.QDragEnterEvent(QtCore.QPoint(9, 9), action, content, button, key)
        dropping = QtGui.QDropEvent(QtCore.QPointF(9, 9), action, content, button, key)
        for event in (entering, dropping):
            QtWidgets.QApplication.sendEvent(self.window, event)
            assert event.isAccepted()

    def close(self) -> None:
        self.window.close()
        assert not self.window.thread_at_work.is_alive()

    @property
    def log(self) -> str:
        return self.window.log.toPlainText()
