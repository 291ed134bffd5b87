"""What the user calls a model becomes the folder of a checkpoint, downloaded if need be."""

import difflib
import os
import re
from contextlib import suppress
from pathlib import Path

from model_kit.demo import Progress, demo_folder, is_set_up
from model_kit.download import CHECKPOINT_FILES, download
from model_kit.models import KNOWN_MODELS, KnownModel
from vision_add_ons.errors import BrokenConfig, CheckpointNotFound
from vision_add_ons.json_files import read_json_if_there

_REVISION = re.compile(r"\w[\w./-]*", re.ASCII)


def resolve(model: str | os.PathLike[str], progress: Progress | None = None) -> Path:
    """The checkpoint folder that `model` names.

    A str is a folder, a short name of `model_kit.models`, or an id of the Hugging Face
    hub, `org/name` or `org/name@revision`; any other path is a folder. What the hub's local cache
    holds complete is used as it is, without asking the hub for a newer version (`hf download
    org/name` fetches that); else it is downloaded into that cache.

    `progress(stage, done, total)` is called from this thread, several times a second, with the
    stages of `download` and of `demo_folder`. An exception that it raises cancels what is under
    way and is passed on.

    Raises `CheckpointNotFound` for what names nothing, `ModelUnavailable` for what cannot be had.
    """
    if model in ("demo", "smollm2"):
        return demo_folder(progress, eyes=model == "demo")
    typed = os.fsdecode(model)
    path = os.path.expanduser(typed)
    if os.path.isdir(path):
        return Path(path)
    name, at, revision = typed.partition("@")
    if not isinstance(model, str) or os.path.lexists(path) or _is_path(name):
        raise CheckpointNotFound(f"there is no folder {path}; give the folder of a checkpoint")
    known = KNOWN_MODELS.get(name)
    repo = known.checkpoint if known and known.checkpoint else name
    if "/" not in repo:
        raise CheckpointNotFound(_no_such_name(name))
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise CheckpointNotFound(f"{revision!r} cannot be a revision: a branch, tag or commit")
    folder = cached_folder(repo, revision or None)
    return folder or download(repo, revision or None, progress or _no_report)


def cached_folder(repo: str, revision: str | None = None) -> Path | None:
    """Where the hub's local cache holds a model complete, or None; asks no network.

    Raises `CheckpointNotFound` for a name that the hub does not allow.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    with suppress(OSError, BrokenConfig):
        try:
            found = snapshot_download(
                repo, revision=revision, local_files_only=True, **CHECKPOINT_FILES
            )
        except HFValidationError as error:
            raise CheckpointNotFound(
                f"{repo!r} is neither a folder here nor a name that a model can have: {error}"
            ) from error
        return Path(found) if _is_complete(Path(found)) else None
    return None


def _is_complete(folder: Path) -> bool:
    """Whether config and weights are all there.

    The hub's library looks after that itself, but only where it noted down what belongs to a
    model; its older versions, and downloads of single files, did not.
    """
    index = read_json_if_there(folder / "model.safetensors.index.json").get("weight_map")
    named = {folder / str(name) for name in index.values()} if isinstance(index, dict) else set()
    weights = named or set(folder.glob("model*.safetensors"))
    return bool(weights) and all(file.is_file() for file in {folder / "config.json", *weights})


def is_downloaded(known: KnownModel) -> bool:
    """Whether a model of the registry can be loaded without a network."""
    if known.checkpoint is not None:
        return cached_folder(known.checkpoint) is not None
    return is_set_up(eyes=known.name == "demo")


def _no_report(stage: str, done: int, total: int) -> None: ...


def _is_path(name: str) -> bool:
    """Whether it can only mean a folder."""
    return name.startswith((".", "~", "/")) or name.endswith("/") or name.count("/") > 1


def _no_such_name(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), KNOWN_MODELS, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return (
        f"there is no model and no folder {name!r}; {hint}`sightline models` lists the names, and "
        "models of the Hugging Face hub are called org/name"
    )
