"""Chat with a model in a window: how a desktop application embeds Sightline.

    pip install 'sightline[desktop]'
    python examples/desktop_app.py [--model MODEL] [--chat FILE]

Whatever waits has a thread, and Qt's signals tell the window about it. See docs/embedding.md.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Signal

import engine

OPTIONS = engine.GenerationOptions(max_image_size=1024)
COLOURS = {"user": "royalblue", "error": "crimson"}


class Window(QtWidgets.QMainWindow):
    # Emitted on other threads. Qt runs a slot on the thread of the object whose method it is; a
    # plain function belongs to none and would run on the thread that emits.
    progress = Signal(str, int)  # what is under way, and per cent
    said = Signal(str, str, list)  # role, text and encoded pictures of a message
    text = Signal(str)
    done = Signal(str)  # a line of figures
    failed = Signal(str)  # a line for the user

    def __init__(self, model: str, file: Path) -> None:
        super().__init__()
        self.setWindowTitle(f"Chat with {model}")
        self.setAcceptDrops(True)
        self.resize(640, 720)
        self.model, self.file = model, file
        self.engine: engine.Engine | None = None
        self.chat: engine.Chat | None = None
        self.generation: engine.Generation | None = None
        self.stopped = Event()
        self.pictures: list[str] = []  # they go with the next message
        self.log, self.entry = QtWidgets.QTextBrowser(), QtWidgets.QLineEdit()
        for widget in (self.log, self.entry):
            widget.setAcceptDrops(False)  # they would take a dropped file for its name
        self.log.document().setDocumentMargin(16)
        self.log.zoomIn(2)
        self.end = QtGui.QTextCursor(self.log.document())  # apart from what the user selects
        self.setCentralWidget(self.log)
        tools = QtWidgets.QToolBar(movable=False)
        self.addToolBar(QtCore.Qt.ToolBarArea.BottomToolBarArea, tools)
        tools.addWidget(self.entry)
        self.send = tools.addAction("Send", self.ask)
        self.entry.returnPressed.connect(self.send.trigger)  # does nothing while it is disabled
        self.halt = tools.addAction("Stop", "Esc", self.stop)
        tools.addAction("Picture…", "Ctrl+O", self.choose_pictures)
        self.new = tools.addAction("New", "Ctrl+N", self.begin_anew)
        self.attached = QtWidgets.QLabel()
        self.bar = QtWidgets.QProgressBar(maximum=0)  # of unknown length until there is progress
        self.bar.setMaximumWidth(160)
        self.statusBar().showMessage("starting")
        self.statusBar().addPermanentWidget(self.attached)
        self.statusBar().addPermanentWidget(self.bar)
        self.progress.connect(self.show_progress)
        self.said.connect(self.show_message)
        self.text.connect(self.write)
        self.done.connect(self.rest)
        self.failed.connect(self.show_error)
        self.start(self.open_chat)

    def start(self, work: Callable[..., None], *args: Any) -> None:
        """Do on a thread of its own what waits."""

        def run() -> None:
            try:
                work(*args)
            except engine.SightlineError as error:
                self.failed.emit(str(error))  # one line, which says what to do
            except Exception as error:  # outside this thread, nobody would know
                self.failed.emit(f"{type(error).__name__}: {error}")

        self.set_busy(True)
        self.stopped.clear()
        self.thread_at_work = Thread(target=run)
        self.thread_at_work.start()

    def open_chat(self) -> None:
        self.engine = engine.load(self.model, progress=self.report)
        there = self.file if self.file.exists() else None
        self.chat = self.engine.chat(options=OPTIONS, restore=there)
        for message in self.chat.messages:
            self.said.emit(message.role, message.text, [p.encoded() for p in message.pictures])
        self.done.emit("ready")

    def report(self, stage: str, done: int, total: int) -> None:  # called on the engine's thread
        if self.stopped.is_set():
            raise engine.EngineClosed("loading was cancelled")  # what is raised here ends the load
        # Per cent, since a signal's int has 32 bits, too few for the bytes of a download.
        self.progress.emit(stage, 100 * done // max(total, 1))

    def answer(self, text: str, pictures: Sequence[str]) -> None:
        assert self.chat is not None
        generation = self.generation = self.chat.send(text, pictures)  # waits: it reads pictures
        if self.stopped.is_set():  # before there was a generation to cancel
            generation.cancel()
        self.said.emit("assistant", "", [])
        for event in generation:
            if isinstance(event, engine.Progress):
                self.progress.emit("reading", 100 * event.processed // max(event.total, 1))
            elif event.text:
                self.text.emit(event.text)
        end = generation.result()  # raises the error that ended it, if one did
        self.chat.save(self.file)  # in the background; closing the engine waits for it
        reused = f"{end.cached_tokens} of the prompt's {end.prompt_tokens} from the cache"
        self.done.emit(f"{end.finish_reason}: {end.completion_tokens} tokens, {reused}")

    # --- on the window's thread; nothing here waits, but for the end ---------------------------

    def show_progress(self, stage: str, percent: int) -> None:
        self.statusBar().showMessage(stage)
        self.bar.setRange(0, 100)
        self.bar.setValue(percent)

    def show_error(self, line: str) -> None:
        self.show_message("error", line)
        self.rest("")

    def rest(self, figures: str) -> None:
        self.statusBar().showMessage(figures)
        self.set_busy(False)

    def set_busy(self, busy: bool) -> None:
        for button in (self.send, self.new):
            button.setEnabled(self.chat is not None and not busy)
        self.halt.setEnabled(busy)
        self.bar.setVisible(busy)

    def ask(self) -> None:
        if text := self.entry.text().strip():
            pictures, self.pictures = self.pictures, []
            self.entry.clear()
            self.attached.clear()
            self.show_message("user", text, pictures)
            self.start(self.answer, text, pictures)

    def stop(self) -> None:
        self.stopped.set()
        if self.generation is not None:
            self.generation.cancel()

    def begin_anew(self) -> None:
        assert self.chat is not None
        self.chat.reset()
        self.chat.save(self.file)
        self.log.clear()

    def choose_pictures(self) -> None:
        self.add_pictures(QtWidgets.QFileDialog.getOpenFileNames(self, "Pictures")[0])

    def add_pictures(self, files: Sequence[str]) -> None:
        self.pictures += files
        self.attached.setText("with " + ", ".join(Path(file).name for file in self.pictures))

    def show_message(self, role: str, text: str, pictures: Sequence[str | bytes] = ()) -> None:
        space, look = QtGui.QTextBlockFormat(), QtGui.QTextCharFormat()
        space.setTopMargin(10)
        if role in COLOURS:
            look.setForeground(QtGui.QColor(COLOURS[role]))
        self.end.insertBlock(space, look)
        for image in map(thumbnail, pictures):
            if not image.isNull():  # Qt reads fewer kinds than the engine does
                self.end.insertImage(image)
                self.end.insertText("\n", look)
        self.end.insertText(text)
        self.log.verticalScrollBar().setValue(self.log.verticalScrollBar().maximum())

    def write(self, text: str) -> None:
        bar = self.log.verticalScrollBar()
        at_end = bar.value() > bar.maximum() - 40
        self.end.insertText(text)
        if at_end:  # else the user is reading further up
            bar.setValue(bar.maximum())

    def dragEnterEvent(self, event: QtGui.QDragEnterEvent) -> None:
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()

    def dropEvent(self, event: QtGui.QDropEvent) -> None:
        self.add_pictures([u.toLocalFile() for u in event.mimeData().urls() if u.isLocalFile()])
        event.acceptProposedAction()

    def closeEvent(self, event: QtGui.QCloseEvent) -> None:
        self.hide()  # before the wait: a library that is being imported cannot be stopped
        self.stop()
        self.thread_at_work.join()
        if self.engine is not None:
            self.engine.close()  # waits for what is being saved


def thumbnail(picture: str | bytes) -> QtGui.QImage:
    """A file or its content, upright and small; no more is decoded than that takes."""
    buffer = QtCore.QBuffer()
    reader = QtGui.QImageReader(picture) if isinstance(picture, str) else QtGui.QImageReader(buffer)
    if isinstance(picture, bytes):
        buffer.setData(picture)
    reader.setAutoTransform(True)
    reader.setScaledSize(reader.size().scaled(160, 160, QtCore.Qt.AspectRatioMode.KeepAspectRatio))
    return reader.read()


def main() -> int:
    app = QtWidgets.QApplication(sys.argv[:1])
    app.setApplicationName("Sightline chat")
    places = QtCore.QStandardPaths
    folder = Path(places.writableLocation(places.StandardLocation.AppDataLocation))
    parser = argparse.ArgumentParser(description="Chat with a model in a window.")
    parser.add_argument("--model", default="demo", help="a name, a folder or an id of the hub")
    parser.add_argument("--chat", type=Path, default=folder / "conversation", metavar="FILE")
    args = parser.parse_args()
    args.chat.parent.mkdir(parents=True, exist_ok=True)
    window = Window(args.model, args.chat)
    window.show()
    return app.exec()


if __name__ == "__main__":
    sys.exit(main())
