"""Files that are whole or not there (write beside, sync, rename, sync the folder), reading them back, bounded and
checked, and locks. Files are readable by their owner only, unless they are public. OSErrors are the system's own.
"""

import fcntl
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydantic import BaseModel, ValidationError

from emo.errors import ConfigError, EmoError

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC  # no file, and no link, of others
_SYNCS = 8  # at a time: what a file system is asked for together it writes together

Buffer = bytes | bytearray | memoryview
R = TypeVar("R", bound=BaseModel)


def write(path: Path, *pieces: Buffer, synced: bool = True, public: bool = False) -> None:
    """Replace `path` by the `pieces`, and bring it to the disk if `synced`. On an OSError the old file is still there,
    unless the last sync failed: then there is none. `public`: others may read it.
    """
    written = path.with_name(f".{secrets.token_hex(8)}.tmp")  # others may write into this folder too
    try:
        handle = os.open(written, _NEW, 0o644 if public else 0o600)
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
    """Whether this is a file that `write` was killed over."""
    return name.startswith(".") and name.endswith(".tmp")


def read(path: Path, limit: int) -> bytearray:
    """At most `limit` + 1 bytes: the one too many says that the file is larger."""
    with path.open("rb", buffering=0) as file:  # first: a folder's "size" is no reason to take memory
        data, size = bytearray(limit + 1), 0
        with memoryview(data) as view:
            while size < len(data) and (more := file.readinto(view[size:])):
                size += more
    del data[size:]
    return data


def whole(path: Path, limit: int, error: type[EmoError]) -> bytearray:
    """All of `path`. Raises `error` where it cannot be read or has more than `limit` bytes."""
    try:
        about = path.stat()
        size = about.st_size if stat.S_ISREG(about.st_mode) else limit  # a pipe has none
        data = read(path, min(limit, size))  # which allocates that much
    except OSError as cause:
        raise error(f"{path}: cannot be read: {cause.strerror}") from cause
    if len(data) > limit:
        raise error(f"{path}: has more than the {limit:,} bytes that are read; it is not what EMO wrote")
    return data


def record(kind: type[R], text: str | bytes | bytearray, where: str, error: type[EmoError]) -> R:
    """`text`, JSON, as a `kind`. Raises `error`, which names the first field that is wrong."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as cause:
        first = cause.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the text"
        raise error(f"{where}: {place}: {first['msg']}; the file is damaged or of another version") from cause


def create(path: Path) -> BinaryIO:
    """A new file in place of the old one."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, _NEW, 0o600), "wb")


def make_folder(folder: Path, mode: int = 0o700) -> None:
    """Make `folder`, with `mode`, and its parents, with the usual one, and sync them. An existing one keeps its mode."""
    if not folder.is_dir():
        make_folder(folder.parent, 0o777)
        folder.mkdir(mode, exist_ok=True)
        sync(folder.parent)


def lock(path: Path) -> int:
    """Lock a file until the handle is closed or the process ends, in any way. Raises BlockingIOError if it is locked."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(handle)
        raise
    return handle


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a state_dir for one node. Raises ConfigError when another has it, or it cannot be written."""
    try:
        make_folder(folder)
        handle = lock(folder / ".lock")
    except BlockingIOError as error:
        raise ConfigError(
            f"state_dir {folder}: another node runs with it; stop that one, or give this one its own"
        ) from error
    except OSError as error:
        raise ConfigError(f"state_dir {folder}: cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Best effort: what is left over is removed at the next start."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file's content to the disk, or what was made, renamed or removed in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(paths: Iterable[Path]) -> dict[Path, OSError]:
    """`sync` each, several at a time. Returns those that failed."""
    failed: dict[Path, OSError] = {}

    def one(path: Path) -> None:
        try:
            sync(path)
        except OSError as error:
            failed[path] = error

    with ThreadPoolExecutor(_SYNCS) as pool:
        list(pool.map(one, paths))
    return failed
