"""What an engine keeps between requests: in memory, within one budget of bytes, and on disk."""

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from engine import conversation_file
from engine.memory import kv_file
from engine.memory.budget import Budget
from engine.memory.disk_cache import DiskCache
from engine.memory.disk_writer import DiskWriter
from engine.memory.features import FeatureCache
from engine.memory.kv_file import SUFFIX
from engine.memory.kv_state import rotates
from engine.memory.prompt_cache import PromptCache
from engine.memory.room import Needs, Room

if TYPE_CHECKING:
    from engine.drafting.drafts import Drafts
    from engine.prompts.messages import Message
    from model_kit.kit import ModelKit


class Memory:
    """The KV caches of past requests, and the rows of pictures. For the engine's thread alone."""

    def __init__(
        self,
        kit: "ModelKit",
        max_bytes: int,
        cache_dir: Path | None,
        max_disk_bytes: int,
        memory_bytes: int | None = None,
        parallel: int = 1,
    ) -> None:
        """`max_bytes` bounds what is kept in memory, `memory_bytes` all that there may be.

        `parallel` answers may be under way at once.
        """
        self.budget = Budget(max_bytes)
        self.features = FeatureCache(kit.add_on, self.budget)
        self.room = Room(kit, self.budget, self.features, memory_bytes, parallel)
        layers = [] if kit.text_model is None else kit.make_cache()
        self._layers = len(layers)
        self.rotates = rotates(layers)
        """Whether the model's KV caches cannot all go back by themselves."""
        self.cache_dir, self._max_disk_bytes = cache_dir, max_disk_bytes
        # One for all models: what is saved twice to one place must be written in that order.
        self._writer = DiskWriter()
        self._of_models: dict[str, tuple[PromptCache, DiskCache]] = {}
        self.drafts: Drafts | None = None
        """What guesses how answers go on, if anything does."""
        self.serve(kit.fingerprint)

    def serve(self, fingerprint: str) -> None:
        """From now on, keep and find KV caches of this model: the same one, differently adapted.

        Those of the others are kept for their return. Raises `OptionError` for a folder that
        cannot be used.
        """
        self.prompts, self.disk = self._of_model(fingerprint, self._layers, self.rotates)

    def _of_model(
        self, fingerprint: str, layers: int, rotating: bool
    ) -> tuple[PromptCache, DiskCache]:
        if fingerprint not in self._of_models:
            disk = DiskCache(
                self.cache_dir, self._max_disk_bytes, fingerprint, layers, self._writer
            )
            self._of_models[fingerprint] = PromptCache(self.budget, disk, rotating), disk
        return self._of_models[fingerprint]

    def of_draft(self, draft: "ModelKit") -> PromptCache:
        """Keep KV caches of a model that drafts, too; they count as the others do."""
        self.room.drafts = Needs(draft)
        kv = draft.make_cache()
        return self._of_model(f"draft {draft.fingerprint}", len(kv), rotates(kv))[0]

    def save(
        self,
        path: Path,
        messages: "Sequence[Message]",
        owner: object | None,
        future: "Future[int]",
    ) -> None:
        """Have a conversation written to `path`, and the KV cache of its owner beside it."""
        write, failure = None, None
        try:
            entry = None if owner is None else self.prompts.of(owner)
            if entry is not None and kv_file.serves(entry.kv):
                _, write = self.disk.prepare(kv_path(path), entry)
                self.prompts.recount(entry)
        except Exception as error:
            failure = error

        def both() -> int:
            # The words first: a KV cache that is older than they are serves as far as it goes.
            written = conversation_file.write(path, messages)
            if failure is not None:
                raise failure
            return written + (write() if write is not None else 0)

        self.disk.submit(both, future)

    def restore(self, path: Path) -> None:
        """Know the KV cache of a conversation that was saved to `path`."""
        self.disk.add(kv_path(path))

    def keep_grown(self) -> None:
        """Write to the disk what has grown much: when there is nothing else to do."""
        for prompts, _ in self._of_models.values():
            prompts.keep_grown()

    def close(self) -> None:
        """Write what is to outlive the engine, and let go of the rest."""
        with ExitStack() as stack:
            stack.callback(self.budget.clear)
            stack.callback(self._writer.close)
            for prompts, _ in self._of_models.values():
                stack.callback(prompts.keep_all)


def kv_path(path: Path) -> Path:
    """Where the KV cache of a conversation saved to `path` lies."""
    return path.with_name(path.name + SUFFIX)


def stats(memory: Memory | None) -> dict[str, int]:
    """What is kept: how many of each kind, and bytes. Nothing, of an engine that is closed."""
    figures = {
        "conversations": lambda kept: len(kept.prompts),
        "conversation_bytes": lambda kept: kept.prompts.nbytes,
        "images": lambda kept: len(kept.features),
        "image_bytes": lambda kept: kept.features.nbytes,
        "bytes": lambda kept: kept.budget.nbytes,
        "max_bytes": lambda kept: kept.budget.max_bytes,
        "disk_conversations": lambda kept: len(kept.disk),
        "disk_bytes": lambda kept: kept.disk.nbytes,
        "disk_max_bytes": lambda kept: kept.disk.max_bytes,
        "disk_bytes_written": lambda kept: kept.disk.bytes_written,
    }
    return {name: figure(memory) if memory else 0 for name, figure in figures.items()}
