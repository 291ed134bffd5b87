"""`sightline chat`: a conversation in the terminal, or line by line from a pipe."""

import argparse
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli.answer import show_answer, summary
from engine.cli.arguments import add_options, given_options, read_path, read_pictures
from engine.cli.loading import open_engine
from engine.cli.terminal import complain, printable
from engine.engine import Engine
from engine.options import GenerationOptions
from model_kit.models import known_model
from vision_add_ons.errors import SightlineError

if TYPE_CHECKING:
    from engine.images import LoadedPicture

HELP = """\
/image FILE   attach a picture to the next message
/system TEXT  start anew, with this text on how to behave (or none)
/reset        start anew
/stats        figures of the last answer and of the prompt cache
/save FILE    write the conversation to a new Markdown file
/quit, /exit  leave; so does Ctrl-D
Ctrl-C cancels an answer."""


def add_command(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser(
        "chat",
        help="talk with a model",
        epilog=f"In the conversation:\n\n{HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    resume = "go on with the conversation in FILE, if it is there, and keep it there at the end"
    parser.add_argument("--resume", metavar="FILE", help=resume)
    add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    given = given_options(args)
    pictures = read_pictures(args.image)
    with open_engine(args) as engine:
        resume = None if args.resume is None else Path(args.resume).expanduser()
        options = replace(engine.default_options, **given)
        conversation = Conversation(engine, args.model, args.system, options, resume)
        conversation.attach(pictures)
        try:
            conversation.run()
        finally:
            conversation.keep()
    return 0


class Conversation:
    """Reads lines to the end: answers messages, obeys commands."""

    def __init__(
        self,
        engine: Engine,
        model: str,
        system: str | None,
        options: GenerationOptions,
        resume: Path | None = None,
    ) -> None:
        self._engine = engine
        self._asked_for = model
        self._model = Path(model).expanduser().resolve().name
        self._system = system
        self._resume = resume
        restore = resume if resume is not None and resume.exists() else None
        self._chat = engine.chat(system, options, restore)
        self._images: list[LoadedPicture] = []
        """Attached to the next message."""
        self._names: dict[str, str] = {}
        """Every picture's description, by its digest."""
        for message in self._chat.messages:
            self._names |= {p.digest: f"{p.size[0]}x{p.size[1]}" for p in message.images}
        self._at_terminal = sys.stdin.isatty()
        self._commands = {
            "/help": lambda _: self._say(HELP),
            "/image": self._image,
            "/system": self._system_text,
            "/reset": lambda _: self._begin(),
            "/stats": lambda _: self._stats(),
            "/save": self._save,
        }

    def attach(self, pictures: "list[tuple[Path, LoadedPicture]]") -> None:
        for path, picture in pictures:
            self._images.append(picture)
            self._names[picture.digest] = f"{path.name}, {picture.size[0]}x{picture.size[1]}"

    def keep(self) -> None:
        """Save the conversation where it is to be resumed."""
        if self._resume is not None and self._chat.messages:
            try:
                self._chat.save(self._resume).result()
            except (SightlineError, OSError) as error:
                complain(error)

    def run(self) -> None:
        if self._at_terminal:
            with suppress(ImportError):
                import readline  # noqa: F401 - from here on, input() edits lines
            known = known_model(self._asked_for)
            if known is not None and known.greeting is not None:
                self._say(known.greeting)
            commands = " ".join([*self._commands, "/quit"])
            self._say(f"{self._model} ({self._engine.report.model_type}). Commands: {commands}")
        while True:
            try:
                line = self._read_line()
                if line is None or line.split()[:1] in (["/quit"], ["/exit"]):
                    return
                self._obey(line)
            except KeyboardInterrupt:
                if not self._at_terminal:
                    raise
                self._say("\n/quit or Ctrl-D leaves.")
            except SightlineError as error:
                complain(error)

    def _read_line(self) -> str | None:
        try:
            return input("> " if self._at_terminal and sys.stdout.isatty() else "")
        except EOFError:
            if self._at_terminal:
                self._say("")
            return None

    def _obey(self, line: str) -> None:
        name, *rest = line.split(maxsplit=1)[:2] or [""]
        if not line.startswith("/"):
            if name:
                self._answer(line.strip())
        elif name in self._commands:
            self._commands[name]("".join(rest).strip())
        else:
            self._say(f"There is no {name}; see /help. A message may begin with a space.")

    def _say(self, text: str) -> None:
        print(printable(text, sys.stdout), flush=True)

    def _answer(self, text: str) -> None:
        images, self._images = self._images, []
        try:
            end = show_answer(lambda: self._chat.send(text, images), sys.stdout)
        except SightlineError as error:
            complain(f"{error} (the picture is no longer attached)" if images else error)
            return
        self._say("")
        if end.error is not None:
            complain(end.error)
        elif end.finish_reason == "cancelled":
            complain("the answer was cancelled")
        elif end.finish_reason == "length":
            complain(f"the answer was cut after {end.completion_tokens} tokens")

    def _image(self, file: str) -> None:
        if not file:
            self._say("Which picture? /image FILE")
            return
        pictures = read_pictures([file])
        self.attach(pictures)
        self._say(f"{self._names[pictures[0][1].digest]}: goes with the next message.")

    def _system_text(self, text: str) -> None:
        self._system = text or None
        self._begin()

    def _begin(self) -> None:
        self._chat.reset(self._system)
        self._images = []
        self._say("A new conversation begins.")

    def _stats(self) -> None:
        last, cache = self._chat.last, self._engine.cache_stats()
        sizes = {name: size / 2**20 for name, size in cache.items() if "bytes" in name}
        self._say("no answer yet" if last is None else summary(last))
        self._say(
            f"prompt cache: {cache['conversations']} conversations "
            f"({sizes['conversation_bytes']:.1f} MiB), {cache['images']} images "
            f"({sizes['image_bytes']:.1f} MiB), {sizes['bytes']:.1f} of "
            f"{sizes['max_bytes']:.1f} MiB"
        )
        if any(figure for name, figure in cache.items() if name.startswith("disk_")):
            self._say(
                f"on disk: {cache['disk_conversations']} conversations, "
                f"{sizes['disk_bytes']:.1f} of {sizes['disk_max_bytes']:.1f} MiB, "
                f"{sizes['disk_bytes_written']:.1f} MiB written since the start"
            )

    def _save(self, file: str) -> None:
        path = read_path(file)
        try:
            with path.open("x", encoding="utf-8", errors="replace") as new:
                new.write(self._transcript())
        except FileExistsError:
            complain(f"{path} exists already and stays as it is; give another name: /save FILE")
        except (OSError, ValueError) as error:
            complain(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}")
        else:
            self._say(f"Saved to {path}.")

    def _transcript(self) -> str:
        titles = {"system": "System", "user": "You", "assistant": self._model, "tool": "Tool"}
        parts = [f"# Conversation with {self._model}"]
        for message in self._chat.messages:
            parts.append(f"## {titles[message.role]}")
            parts += [
                part if isinstance(part, str) else f"*Picture: {self._names[part.digest]}*"
                for part in message.parts
            ]
        return "\n\n".join(parts) + "\n"
