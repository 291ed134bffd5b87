"""Files that are there whole or not at all, whenever the machine or the process stops."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or a folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def private_file(path: Path) -> None:
    """Make `path` an empty file that only this user can read."""
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def publish(temporary: Path, path: Path) -> None:
    """Let a finished file take the place of `path`, in the same folder."""
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)
