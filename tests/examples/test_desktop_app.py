"""The desktop example, on Qt's platform without a screen."""

import importlib.util
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Any

import pytest

os.environ["QT_QPA_PLATFORM"] = "offscreen"
WHY = "needs PySide6-Essentials, and of Debian's packages libegl1, libxkbcommon0 and libdbus-1-3"
pytest.importorskip("PySide6.QtWidgets", reason=WHY, exc_type=ImportError)

from PySide6 import QtCore, QtTest, QtWidgets  # noqa: E402
from support.desktop import Observed  # noqa: E402
from support.waiting import wait_for  # noqa: E402

import engine  # noqa: E402

EXAMPLE = Path(__file__).parents[2] / "examples" / "desktop_app.py"
MOST = 100
PICTURE = "\N{OBJECT REPLACEMENT CHARACTER}"
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


Opening = Callable[[str | Path, Path], Observed]


@pytest.fixture
def opening(example: ModuleType, application: QtWidgets.QApplication) -> Iterator[Opening]:
    """Opens windows, which are closed after the test."""
    opened: list[Observed] = []

    def opens(model: str | Path, file: Path) -> Observed:
        opened.append(Observed(example, model, file))
        return opened[-1]

    yield opens
    for observed in opened:
        observed.close()


@pytest.fixture(scope="module")
def observed(
    example: ModuleType,
    application: QtWidgets.QApplication,
    seeing_demo: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Observed]:
    made: list[Observed] = []
    load = engine.load

    def loading(*given: Any, **told: Any) -> engine.Engine:
        """Waits for the window's thread to turn its event loop, which it does beside the load."""
        wait_for(lambda: bool(made) and made[0].ticked.is_set())
        return load(*given, **told)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "load", loading)
        made.append(Observed(example, "demo", tmp_path_factory.mktemp("app") / "talk"))
        try:
            yield made[0].ready()
        finally:
            made[0].close()


@pytest.fixture
def fresh(observed: Observed) -> Observed:
    """The window with the default model, at the start of a conversation."""
    return observed.begun_anew()


def saying(tokens: int, example: ModuleType, folder: Path, place: Path) -> Iterator[Observed]:
    """A window whose model's answers are so long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example, "OPTIONS", engine.GenerationOptions(max_tokens=tokens))
        seen = Observed(example, folder, place / "talk").ready()
    try:
        yield seen
    finally:
        seen.close()


@pytest.fixture(scope="module")
def with_tiny_model(
    example: ModuleType,
    application: QtWidgets.QApplication,
    tiny_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Observed]:
    yield from saying(MOST, example, tiny_folder, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def with_letters(
    example: ModuleType,
    application: QtWidgets.QApplication,
    letters_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Observed]:
    yield from saying(6, example, letters_folder, tmp_path_factory.mktemp("letters"))


@pytest.fixture
def babbling(with_tiny_model: Observed) -> Observed:
    """A window whose model is small, and answers without sense until `MOST` tokens are there."""
    return with_tiny_model.begun_anew()


@pytest.fixture
def brief(with_letters: Observed) -> Observed:
    """A window whose answers are made before anybody could stop them."""
    return with_letters.begun_anew()


def test_loads_and_stays_responsive(observed: Observed) -> None:
    stages = [stage for stage, *_ in observed.stages]
    assert stages[0] == "import libraries"
    done = [done for stage, done, _ in observed.stages if stage == "load decoder"]
    assert done == sorted(done)
    assert observed.ticked.is_set()  # the load waited for that, on another thread
    assert not observed.window.bar.isVisible()


def test_streams(fresh: Observed) -> None:
    assert fresh.ask("What is the capital of France?") == "The capital of France is Paris."
    assert len(fresh.texts) >= 4
    assert not any(fresh.texts)  # shown while the answer was being made
    assert "tokens" in fresh.window.statusBar().currentMessage()


def test_a_dropped_picture(fresh: Observed) -> None:
    fresh.drop(SAMPLES / "animals.png")
    assert fresh.window.attached.text() == "with 1 dropped"
    assert fresh.ask("What is in this picture?").splitlines() == [PICTURE, "badger and owl"]
    assert fresh.window.attached.text() == ""
    assert fresh.ask("What is on the left?") == "badger"
    assert fresh.window.chat.last.images_encoded == 0


@pytest.fixture
def go_on(monkeypatch: pytest.MonkeyPatch) -> Event:
    """Has answers wait at their twentieth token until it is set, or they are cancelled."""
    go_on, emit = Event(), engine.Generation.emit
    tokens: Counter[int] = Counter()

    def emitting(generation: engine.Generation, event: Any) -> None:
        emit(generation, event)
        tokens[id(generation)] += isinstance(event, engine.TextDelta)
        while tokens[id(generation)] == 20 and not generation.cancelled and not go_on.wait(0.01):
            pass

    monkeypatch.setattr(engine.Generation, "emit", emitting)
    return go_on


@pytest.mark.usefixtures("go_on")
@pytest.mark.parametrize("how", ["key", "button"])
def test_stop(babbling: Observed, how: str) -> None:
    babbling.begin("Hello")
    babbling.until(lambda: len(babbling.texts) >= 3)
    if how == "key":
        QtTest.QTest.keyClick(babbling.window.entry, QtCore.Qt.Key.Key_Escape)
    else:
        babbling.window.halt.trigger()
    babbling.ready()
    last = babbling.window.chat.last
    assert last.finish_reason == "cancelled"
    assert last.completion_tokens < MOST
    assert babbling.log.rstrip().endswith(last.answer.rstrip())


def test_stop_before_it_begins(babbling: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    send = engine.Chat.send

    def sending(chat: engine.Chat, *question: Any, cancel: Event) -> engine.Generation:
        assert cancel.wait(600)
        return send(chat, *question, cancel=cancel)

    monkeypatch.setattr(engine.Chat, "send", sending)
    babbling.begin("Hello")
    babbling.window.halt.trigger()
    babbling.ready()
    assert babbling.window.chat.last.finish_reason == "cancelled"
    assert babbling.window.chat.messages == ()


def test_sending_twice(babbling: Observed, go_on: Event) -> None:
    babbling.begin("One")
    QtTest.QTest.keyClicks(babbling.window.entry, "Two")
    QtTest.QTest.keyClick(babbling.window.entry, QtCore.Qt.Key.Key_Return)
    go_on.set()
    babbling.ready()
    assert len(babbling.window.chat.messages) == 2
    assert babbling.window.entry.text() == "Two"  # not lost
    babbling.begin("")
    babbling.ready()
    assert babbling.window.chat.messages[2].text == "Two"


def test_what_is_no_picture(brief: Observed, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    brief.drop(bad)
    said = brief.ask("What is in this picture?")
    assert "bad.png" in said
    assert "is not a picture that can be read" in said
    brief.drop(tmp_path)  # a folder
    assert "is a folder" in brief.ask("And here?")
    assert brief.window.chat.messages == ()


def test_a_file_that_cannot_be_written(brief: Observed, tmp_path: Path) -> None:
    before, brief.window.file = brief.window.file, tmp_path / "gone" / "talk"
    shown = brief.ask("One")
    brief.window.file = before
    *_, answer = brief.window.chat.messages
    assert shown.startswith(answer.text.strip()[:20])
    assert "talk cannot be written" in shown
    brief.ask("Two")
    assert len(brief.window.chat.messages) == 4
    assert "Two" in before.read_text()


def test_an_engine_that_fails(brief: Observed, caplog: pytest.LogCaptureFixture) -> None:
    brief.ask("One")
    before = brief.window.chat.messages
    kit = brief.window.chat._engine._worker.kit
    network, kit.text_model = kit.text_model, None
    assert "not callable" in brief.ask("Two")
    kit.text_model = network
    assert any(record.exc_info for record in caplog.records)  # told, with where it came from
    assert brief.window.chat.messages == before
    brief.ask("Three")
    assert len(brief.window.chat.messages) == 4


def test_restart(observed: Observed, fresh: Observed, opening: Opening) -> None:
    """The last to use the window that the others share."""
    fresh.drop(SAMPLES / "animals.png")
    fresh.ask("What is in this picture?")
    fresh.close()

    second = opening("demo", fresh.window.file).ready()
    assert second.log == fresh.log
    assert second.ask("What is on the left?") == "badger"
    assert second.window.chat.last.disk_tokens > 0
    assert second.window.chat.last.images_encoded == 0
    second.begin("Write a long story about a river.")
    second.until(lambda: second.texts or second.window.send.isEnabled())
    second.close()  # while it answers, most likely
    *_, question, answer = second.window.chat.messages
    assert question.text == "Write a long story about a river."
    assert answer.text in second.window.chat.last.answer
    assert question.text in second.window.file.read_text()


def test_a_damaged_conversation(opening: Opening, letters_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk"
    file.write_text('{"format": "sight')
    seen = opening(letters_folder, file).ready()
    assert "damaged" in seen.log
    [aside] = tmp_path.iterdir()
    assert aside.name in seen.log
    assert aside.read_text() == '{"format": "sight'
    seen.begin("Hello")
    seen.until(lambda: seen.texts)
    seen.close()
    assert "Hello" in file.read_text()


def test_a_model_that_is_not_there(opening: Opening, tmp_path: Path) -> None:
    seen = opening("no-such-model", tmp_path / "talk")
    seen.until(lambda: seen.log)
    assert "no model" in seen.log
    assert not seen.window.send.isEnabled()
    seen.close()
    assert not (tmp_path / "talk").exists()


def test_stopping_a_load(
    opening: Opening, letters_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = engine.load

    def loading(model: str, *, cancel: Event, progress: Any) -> engine.Engine:
        assert cancel.wait(600)
        return load(model, cancel=cancel, progress=progress)

    monkeypatch.setattr(engine, "load", loading)
    seen = opening(letters_folder, tmp_path / "talk")
    seen.window.halt.trigger()
    seen.until(lambda: seen.log or seen.window.send.isEnabled())
    assert "cancelled" in seen.log


def test_signals_keep_what_they_refer_to(example: ModuleType) -> None:
    """A release of PySide6 lost a reference to True by each, until Python aborted."""
    sender = QtCore.QTimer()
    before = sys.getrefcount(True)
    for _ in range(1000):
        sender.objectNameChanged.emit("name")
    assert sys.getrefcount(True) > before - 500


CLOSING = """
import sys
_, examples, milliseconds = sys.argv
sys.path.insert(0, examples)
import desktop_app
from PySide6.QtCore import QTimer

class Closing(desktop_app.Window):
    def showEvent(self, event):
        QTimer.singleShot(int(milliseconds), self.close)

desktop_app.Window, sys.argv = Closing, ["app"]
sys.exit(desktop_app.main())
"""


@pytest.mark.parametrize("after", [0, 1000])
def test_closing_while_it_loads(seeing_demo: Path, tmp_path: Path, after: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CLOSING, str(EXAMPLE.parent), str(after)],
        env={**os.environ, "XDG_DATA_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
