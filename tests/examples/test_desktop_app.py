"""The desktop example, on Qt's platform without a screen, with the default model."""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

os.environ["QT_QPA_PLATFORM"] = "offscreen"
WHY = "needs PySide6-Essentials, and of Debian's packages libegl1, libxkbcommon0 and libdbus-1-3"
pytest.importorskip("PySide6.QtWidgets", reason=WHY, exc_type=ImportError)

from PySide6 import QtCore, QtGui, QtTest, QtWidgets  # noqa: E402

EXAMPLE = Path(__file__).parents[2] / "examples" / "desktop_app.py"
SAMPLES = Path(__file__).parents[2] / "model_kit" / "demo_parts" / "samples"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("desktop_app", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def application() -> QtWidgets.QApplication:
    return QtWidgets.QApplication.instance() or QtWidgets.QApplication([])


class Observed:
    """A window, what it was told, and when its event loop turned."""

    def __init__(self, example: ModuleType, model: str, file: Path) -> None:
        self.stages: list[tuple[str, int]] = []
        self.texts: list[float] = []
        self.ticks: list[float] = []
        self.window = example.Window(model, file)
        self.window.progress.connect(lambda *told: self.stages.append(told))
        self.window.text.connect(lambda _: self.texts.append(time.monotonic()))
        self.timer = QtCore.QTimer(interval=10)
        self.timer.timeout.connect(lambda: self.ticks.append(time.monotonic()))
        self.timer.start()
        self.window.show()

    def until(self, condition: Callable[[], Any], seconds: float = 120) -> None:
        """Let the event loop turn until something holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.log
            loop = QtCore.QEventLoop()
            QtCore.QTimer.singleShot(5, loop.quit)
            loop.exec()

    def begin(self, question: str) -> None:
        self.texts.clear()
        self.ticks.clear()
        QtTest.QTest.keyClicks(self.window.entry, question)
        QtTest.QTest.keyClick(self.window.entry, QtCore.Qt.Key.Key_Return)
        assert not self.window.send.isEnabled()

    def ask(self, question: str) -> str:
        """What the window shows after the question, when all is said."""
        self.begin(question)
        self.until(self.window.send.isEnabled)
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

    @property
    def log(self) -> str:
        return self.window.log.toPlainText()


@pytest.fixture(scope="module")
def observed(
    example: ModuleType,
    application: QtWidgets.QApplication,
    seeing_demo: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Observed]:
    seen = Observed(example, "demo", tmp_path_factory.mktemp("app") / "talk")
    try:
        seen.until(seen.window.send.isEnabled)
        yield seen
    finally:
        seen.window.close()


@pytest.fixture
def fresh(observed: Observed) -> Observed:
    """The window, at the start of a conversation."""
    observed.window.new.trigger()
    assert observed.log == ""
    return observed


def test_loads_and_stays_responsive(observed: Observed) -> None:
    done = [percent for stage, percent in observed.stages if stage == "load decoder"]
    assert done == sorted(done)
    assert done[-1] == 100
    # Of a hundred a second; not one would come if the load were on this thread.
    assert len(observed.ticks) > 20
    gap = max(b - a for a, b in zip(observed.ticks, observed.ticks[1:], strict=False))
    print(f"longest time without an event: {gap:.2f} s")
    assert not observed.window.bar.isVisible()


def test_streams(fresh: Observed) -> None:
    assert fresh.ask("What is the capital of France?") == "The capital of France is Paris."
    assert len(fresh.texts) >= 4
    between = [tick for tick in fresh.ticks if fresh.texts[0] < tick < fresh.texts[-1]]
    assert len(between) >= 2
    assert "tokens" in fresh.window.statusBar().currentMessage()


@pytest.mark.parametrize("how", ["key", "button"])
def test_stop(fresh: Observed, how: str) -> None:
    fresh.begin("Write a long story about a river.")
    fresh.until(lambda: len(fresh.texts) >= 3)
    if how == "key":
        QtTest.QTest.keyClick(fresh.window.entry, QtCore.Qt.Key.Key_Escape)
    else:
        fresh.window.halt.trigger()
    fresh.until(fresh.window.send.isEnabled)
    last = fresh.window.chat.last
    assert last.finish_reason == "cancelled"
    assert last.completion_tokens < 100
    assert fresh.log.rstrip().endswith(last.answer.rstrip())


def test_stop_before_it_begins(fresh: Observed) -> None:
    fresh.begin("Write a long story about a river.")
    fresh.window.stop()
    fresh.until(fresh.window.send.isEnabled)
    assert fresh.window.chat.last.finish_reason == "cancelled"


def test_a_dropped_picture(fresh: Observed) -> None:
    fresh.drop(SAMPLES / "animals.png")
    assert "animals.png" in fresh.window.attached.text()
    assert fresh.ask("What is in this picture?") == "badger and owl"
    assert "￼" in fresh.log  # the picture
    assert fresh.window.attached.text() == ""
    assert fresh.ask("What is on the left?") == "badger"
    assert fresh.window.chat.last.images_encoded == 0


def test_a_bad_picture(fresh: Observed, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    fresh.drop(bad)
    said = fresh.ask("What is in this picture?")
    assert "bad.png" in said
    assert "is not a picture that can be read" in said
    fresh.drop(tmp_path)  # a folder
    assert "is a folder" in fresh.ask("And here?")
    assert "Paris" in fresh.ask("What is the capital of France?")


def test_restart(
    example: ModuleType, application: QtWidgets.QApplication, seeing_demo: Path, tmp_path: Path
) -> None:
    file = tmp_path / "talk"
    first = Observed(example, "demo", file)
    first.until(first.window.send.isEnabled)
    first.drop(SAMPLES / "animals.png")
    first.ask("What is in this picture?")
    first.window.close()

    second = Observed(example, "demo", file)
    second.until(second.window.send.isEnabled)
    assert second.log == first.log
    assert second.ask("What is on the left?") == "badger"
    assert second.window.chat.last.disk_tokens > 0
    assert second.window.chat.last.images_encoded == 0
    second.begin("Write a long story about a river.")
    second.until(lambda: second.texts or second.window.send.isEnabled())
    second.window.close()  # while it answers, most likely
    *_, question, answer = second.window.chat.messages
    assert question.text == "Write a long story about a river."
    assert answer.text in second.window.chat.last.answer
    assert question.text in file.read_text()


def test_a_model_that_is_not_there(
    example: ModuleType, application: QtWidgets.QApplication, tmp_path: Path
) -> None:
    seen = Observed(example, "no-such-model", tmp_path / "talk")
    seen.until(lambda: seen.log)
    assert "no model" in seen.log
    assert not seen.window.send.isEnabled()
    seen.window.close()
    assert not (tmp_path / "talk").exists()


CLOSING = """
import sys
_, examples, milliseconds, file = sys.argv
sys.path.insert(0, examples)
import desktop_app
from PySide6.QtCore import QTimer

class Closing(desktop_app.Window):
    def showEvent(self, event):
        QTimer.singleShot(int(milliseconds), self.close)

desktop_app.Window, sys.argv = Closing, ["app", "--chat", file]
sys.exit(desktop_app.main())
"""


@pytest.mark.parametrize("after", [0, 1500])
def test_closing_while_it_loads(seeing_demo: Path, tmp_path: Path, after: int) -> None:
    arguments = [str(EXAMPLE.parent), str(after), str(tmp_path / "new" / "talk")]
    ended = subprocess.run(
        [sys.executable, "-c", CLOSING, *arguments], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
