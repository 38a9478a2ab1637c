"""Files that are whole or not there: write beside, sync, rename, sync the folder.

Knows paths and bytes. Knows no batch, no version, no format. Raises OSError as the system gives it.
"""

import itertools
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

_serial = itertools.count()
_SYNCS = 8  # at a time: what a file system is asked for together it writes together

Buffer = bytes | bytearray | memoryview


def write(path: Path, *pieces: Buffer, synced: bool = True) -> None:
    """`path` holds the `pieces`, and if `synced` is on the disk; or an OSError was raised, and what was there is there,
    unless it was in the very last step: then there is no such file.
    """
    written = path.with_name(f".{next(_serial)}.tmp")
    try:
        handle = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            for piece in pieces:
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(handle, rest) :]  # a full disk may take a part before it refuses
            if synced:
                os.fsync(handle)
        finally:
            os.close(handle)
        written.rename(path)
        written = path
        if synced:
            sync(path.parent)
    except BaseException:
        remove(written)
        raise


def is_left_over(name: str) -> bool:
    """Whether `write` was killed before this file got its name."""
    return name.startswith(".") and name.endswith(".tmp")


def read(path: Path, limit: int) -> bytearray:
    """At most `limit` + 1 bytes: enough to tell a file that has grown."""
    data, size = bytearray(limit + 1), 0
    with path.open("rb", buffering=0) as file, memoryview(data) as view:
        while size < len(data) and (more := file.readinto(view[size:])):
            size += more
    del data[size:]
    return data


def make_folder(folder: Path) -> None:
    """It is there, and those above it; what was missing is on the disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def remove(path: Path) -> None:
    """Best effort: a file too many is put right at the next start."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """The content of a file, or what was made, renamed or removed in a folder, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(paths: Iterable[Path]) -> dict[Path, OSError]:
    """`sync` each, several at a time; those that failed."""
    failed: dict[Path, OSError] = {}

    def one(path: Path) -> None:
        try:
            sync(path)
        except OSError as error:
            failed[path] = error

    with ThreadPoolExecutor(_SYNCS) as pool:
        list(pool.map(one, paths))
    return failed
