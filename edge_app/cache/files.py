"""Files that are whole or not there: write beside, sync, rename, sync the folder.

Knows paths and bytes. Knows no batch, no version, no format. Raises OSError as the system gives it.
"""

import itertools
import os
from pathlib import Path

_serial = itertools.count()


def write(path: Path, data: bytes) -> None:
    """`path` holds `data` and is on the disk, or an OSError was raised and there is no such file."""
    temporary = path.with_name(f".{next(_serial)}.tmp")
    try:
        with temporary.open("xb", buffering=0) as file:
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]  # a full disk may take a part before it refuses
            os.fsync(file.fileno())
        temporary.rename(path)
        sync(path.parent)
    except BaseException:
        remove(temporary)
        remove(path)
        raise


def is_left_over(path: Path) -> bool:
    """Whether `write` was killed before this file got its name."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def read(path: Path, limit: int) -> bytes:
    """At most `limit` + 1 bytes: enough to tell a file that has grown."""
    with path.open("rb", buffering=0) as file:
        data = bytearray()
        while len(data) <= limit and (piece := file.read(limit + 1 - len(data))):
            data += piece
        return bytes(data)


def make_folder(folder: Path, root: Path) -> None:
    """`folder` below `root`, each level of it on the disk."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        while folder != root:
            folder = folder.parent
            sync(folder)


def remove(path: Path) -> None:
    """Best effort: a file too many is put right at the next start."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


def sync(folder: Path) -> None:
    """What was made, renamed or removed in `folder` is on the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
