"""Chat with a model in a window: how a desktop application embeds Sightline.

    pip install 'sightline[desktop]'
    python examples/desktop_app.py [MODEL]

One thread does all that waits; Qt's signals tell the window about it. See docs/embedding.md.
"""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

from PIL.ImageQt import ImageQt
from PySide6 import QtCore, QtGui, QtWidgets

import engine

OPTIONS = engine.GenerationOptions(max_image_size=1024)
COLOURS = {"user": "royalblue", "error": "crimson"}


class Window(QtWidgets.QMainWindow):
    # Emitted on the thread at work; Qt runs the methods that they are connected to on its own.
    progress = QtCore.Signal(str, object, object)  # stage, done, total: Qt's int has only 32 bits
    said = QtCore.Signal(object, str)  # a text or a picture, and by whom if that is new
    busy = QtCore.Signal(bool, str)  # whether, and what to tell about it

    def __init__(self, model: str, file: Path) -> None:
        super().__init__(windowTitle=f"Chat with {model}", size=QtCore.QSize(640, 720))
        self.model, self.file = model, file
        self.chat: engine.Chat | None = None
        self.questions: SimpleQueue[tuple[str, list[str]] | None] = SimpleQueue()
        self.stopped = Event()
        self.setAcceptDrops(True)  # but not what is in it, which would insert a file's name
        self.log = QtWidgets.QTextBrowser(acceptDrops=False)
        self.log.document().setDocumentMargin(16)
        self.end = QtGui.QTextCursor(self.log.document())  # apart from what the user selects
        self.entry = QtWidgets.QLineEdit(acceptDrops=False, placeholderText="Ask, or drop pictures")
        self.bar = QtWidgets.QProgressBar(maximumWidth=160)
        tools = QtWidgets.QToolBar(movable=False)
        tools.addWidget(self.entry)
        self.send = tools.addAction("Send", self.ask)
        self.entry.returnPressed.connect(self.send.trigger)  # does nothing while it is disabled
        self.halt = tools.addAction("Stop", "Esc", self.stopped.set)
        self.new = tools.addAction("New", "Ctrl+N", self.begin_anew)
        self.addToolBar(QtCore.Qt.ToolBarArea.BottomToolBarArea, tools)
        self.attached = QtWidgets.QLabel()
        self.statusBar().addPermanentWidget(self.attached)
        self.statusBar().addPermanentWidget(self.bar)
        self.setCentralWidget(self.log)
        self.progress.connect(self.show_progress)
        self.said.connect(self.show_part)
        self.busy.connect(self.set_busy)
        self.attach([])
        self.set_busy(True, "")
        self.thread_at_work = Thread(target=self.work)
        self.thread_at_work.start()

    def work(self) -> None:
        """All that waits, on a thread of its own."""
        watched = {"progress": self.progress.emit, "cancel": self.stopped}
        with self.errors_shown(), engine.load(self.model, **watched) as loaded:
            self.open_chat(loaded)
            while question := self.questions.get():
                with self.errors_shown():
                    self.answer(*question)
            self.chat.save(self.file)  # with the KV cache: it will go on without reading

    @contextmanager
    def errors_shown(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not isinstance(error, engine.SightlineError):  # those say all in one line
                logging.exception("unforeseen")
            self.said.emit(str(error) or repr(error), "error")
            self.busy.emit(False, "")

    def open_chat(self, loaded: engine.Engine) -> None:
        try:
            there = self.file if self.file.exists() else None
            self.chat = loaded.chat(options=OPTIONS, restore=there)
        except engine.ConversationFileError as error:
            aside = self.file.rename(f"{self.file}.unread-{time.time():.0f}")
            self.said.emit(f"{error}; renamed {aside.name}", "error")
            self.chat = loaded.chat(options=OPTIONS)
        for message in self.chat.messages:
            self.said.emit(message.text, message.role)
            self.show_pictures(message.images)
        self.busy.emit(False, "ready")

    def answer(self, text: str, files: list[str]) -> None:
        pictures = self.show_pictures(files)
        generation = self.chat.send(text, pictures, cancel=self.stopped)
        self.said.emit("", "assistant")
        for event in generation:
            if isinstance(event, engine.Progress):
                self.progress.emit("answering", event.processed, event.total)
            self.said.emit(event.text, "")
        end = generation.result()  # raises the error that ended it, if one did
        self.chat.save(self.file, kv=False).result()  # the words: quick, however long the chat
        cached = f"{end.cached_tokens} of the prompt's {end.prompt_tokens} from the cache"
        self.busy.emit(False, f"{end.finish_reason}: {end.completion_tokens} tokens, {cached}")

    def show_pictures(self, sources: Sequence[Any]) -> list[engine.LoadedPicture]:
        pictures: list[engine.LoadedPicture] = []
        for picture in map(engine.load_picture, sources):
            self.said.emit(" " if pictures else "\n", "")
            small = picture.within(OPTIONS.max_image_size).within(160)  # from what the model sees
            self.said.emit(ImageQt(small.pixels()), "")
            pictures.append(picture)
            if self.stopped.is_set():
                break
        return pictures

    # --- on the window's own thread, where nothing may wait ------------------------------------

    def ask(self) -> None:
        if text := self.entry.text().strip():
            self.show_part(text, "user")
            self.set_busy(True, "asking")
            self.stopped.clear()
            self.questions.put((text, self.files))
            self.entry.clear()
            self.attach([])

    def begin_anew(self) -> None:
        self.chat.reset()
        self.chat.save(self.file, kv=False)
        self.log.clear()

    def attach(self, files: list[str]) -> None:
        self.files = files
        self.attached.setText(f"with {len(files)} dropped" if files else "")

    def set_busy(self, busy: bool, status: str) -> None:
        self.statusBar().showMessage(status)
        for action in (self.send, self.new):
            action.setEnabled(self.chat is not None and not busy)
        self.halt.setEnabled(busy)
        self.bar.setVisible(busy)
        self.bar.setRange(0, 0)  # without an end, until there is progress

    def show_progress(self, stage: str, done: int, total: int) -> None:
        self.statusBar().showMessage(stage)
        self.bar.setRange(0, 100 if done < total else 0)  # what follows has no known end
        self.bar.setValue(100 * done // max(total, 1))

    def show_part(self, part: str | QtGui.QImage, role: str) -> None:
        bar = self.log.verticalScrollBar()
        follow = bar.value() > bar.maximum() - 40  # else the user is reading further up
        if role:
            block, look = QtGui.QTextBlockFormat(), QtGui.QTextCharFormat()
            block.setTopMargin(10)
            if role in COLOURS:
                look.setForeground(QtGui.QColor(COLOURS[role]))
            self.end.insertBlock(block, look)
        self.end.insertText(part) if isinstance(part, str) else self.end.insertImage(part)
        if follow or role == "user":
            bar.setValue(bar.maximum())

    def dragEnterEvent(self, event: QtGui.QDragEnterEvent) -> None:
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()

    def dropEvent(self, event: QtGui.QDropEvent) -> None:
        files = [u.toLocalFile() for u in event.mimeData().urls() if u.isLocalFile()]
        self.attach(self.files + files)
        event.acceptProposedAction()

    def closeEvent(self, event: QtGui.QCloseEvent) -> None:
        self.hide()  # before the wait: a library's import cannot be stopped
        self.stopped.set()
        self.questions.put(None)
        self.thread_at_work.join()


def main() -> int:
    app = QtWidgets.QApplication(sys.argv)
    app.setApplicationName("Sightline chat")
    place = QtCore.QStandardPaths.StandardLocation.AppDataLocation
    folder = Path(QtCore.QStandardPaths.writableLocation(place))
    folder.mkdir(parents=True, exist_ok=True)
    window = Window(sys.argv[1] if len(sys.argv) > 1 else "demo", folder / "conversation")
    window.show()
    return app.exec()


if __name__ == "__main__":
    sys.exit(main())
