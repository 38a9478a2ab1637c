"""The files of a cache folder: where each lies, how it is written, synced, read, set aside.

    ROOT/batches/DEVICE/FF/BATCH-VERSION-CRC.h5    FF: BATCH // 256, CRC: of the whole file, both hex
    ROOT/damaged/     files that were not what their name says: 256 at most
    ROOT/run          the run that the batches are of

A name carries version and checksum: so a listing says what the folder should hold, and no byte is believed, or given to HDF5,
before it was compared. Consecutive batches share folders, so that fewer folders have to be synced together.
"""

import errno
import os
import re
import shutil
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from edge_app.cache import hdf5_template
from edge_app.cache.index import Key, Row
from emo import files
from emo.config import ID
from emo.errors import CacheError

Array = NDArray[Any]

LIMIT = 10**19  # of a batch number and of a version: nineteen digits
_NAME = re.compile(r"(0|[1-9][0-9]{0,18})-(0|[1-9][0-9]{0,18})-([0-9a-f]{8})\.h5")
_ASIDE = 256


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored batch. `activations` (N, ...) and `labels` (N, ...) as they were put, dtypes too; the activations
    float32 where a frame of `codec` was put. The arrays are the caller's own."""

    device: str
    batch: int
    version: int
    activations: Array
    labels: Array
    codec: str = ""


class ScannedFile(NamedTuple):
    """`mtime`: nanoseconds since 1970. `key`: None where the name is none of ours."""

    path: str
    key: Key | None
    row: Row
    mtime: int


class BatchFiles:
    """`root`: must exist. `aside`: how many files are in ROOT/damaged, and their bytes; `damaged`: how many were set aside
    since this was made. Any thread may call; a lock of its own guards what is set aside."""

    def __init__(self, root: Path) -> None:
        self.batches, self._damaged = root / "batches", root / "damaged"
        self._old, self._run = root / "old", root / "run"
        shutil.rmtree(self._old, ignore_errors=True)
        for path in root.iterdir():
            if files.is_left_over(path.name):
                files.remove(path)
        self.batches.mkdir(0o700, exist_ok=True)
        self._damaged.mkdir(0o700, exist_ok=True)
        files.sync(root)
        self._known: set[Path] = set()  # folders whose own names are on the disk
        self._lock = threading.Lock()
        sizes = [path.lstat().st_size for path in self._damaged.iterdir()]
        self.aside, self.damaged = (len(sizes), sum(sizes)), 0

    def path(self, key: Key, row: Row) -> Path:
        return self._folder(key) / f"{key[1]}-{row.version}-{row.crc:08x}.h5"

    def write(self, key: Key, row: Row, pieces: Iterable[files.Buffer], *, synced: bool) -> None:
        """Write the file, and sync it if `synced`. Raises OSError: then there is no such file."""
        folder = self._folder(key)
        if folder not in self._known:
            folder.mkdir(0o700, parents=True, exist_ok=True)
            if synced:
                files.sync(folder.parent)
                files.sync(self.batches)
                self._known.add(folder)
        try:
            files.write(self.path(key, row), *pieces, synced=synced)
        except FileNotFoundError:
            self._known.discard(folder)  # somebody removed it
            raise

    def sync(self, rows: dict[Key, Row]) -> dict[Key, OSError]:
        """Sync these: first all files, then each folder once. Returns those that failed."""
        places = {key: self.path(key, row) for key, row in rows.items()}
        folders = {
            key: (path.parent,) if path.parent in self._known else (path.parent, *list(path.parents)[1:3])
            for key, path in places.items()
        }
        failed = files.sync_all(places.values())
        failed |= files.sync_all({folder for above in folders.values() for folder in above})
        errors: dict[Key, OSError] = {}
        for key, path in places.items():
            error = next((failed[place] for place in (path, *folders[key]) if place in failed), None)
            if error:
                errors[key] = error
            else:
                self._known.add(path.parent)
        return errors

    def read(self, key: Key, row: Row) -> Entry | None:
        """None where there is no such file, or it is not what was written under this name. Raises CacheError when the disk
        cannot be read for another reason."""
        path = self.path(key, row)
        try:
            data = files.read(path, row.size)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EIO):
                return None
            raise CacheError(f"{path}: cannot be read: {error.strerror}") from error
        if len(data) != row.size or zlib.crc32(data) != row.crc:
            return None
        content = hdf5_template.unpack(data)
        if content is None:
            return None
        parts, activations, labels = content
        if (parts.device, parts.batch, parts.version) != (*key, row.version):
            return None
        return Entry(*key, row.version, activations, labels, parts.form.codec)

    def remove(self, rows: Iterable[tuple[Key, Row]]) -> None:
        for key, row in rows:
            files.remove(self.path(key, row))

    def set_aside(self, path: Path, size: int) -> None:
        """Move the file to ROOT/damaged while there are few, else remove it."""
        with self._lock:
            self.damaged += 1
            count, total = self.aside
            if count < _ASIDE:
                try:
                    path.replace(self._damaged / "-".join(path.relative_to(self.batches).parts))
                except OSError:
                    pass  # the disk may be failing: what cannot be moved is removed
                else:
                    self.aside = count + 1, total + size
                    return
        files.remove(path)

    def drop_aside(self) -> None:
        with self._lock:
            for path in self._damaged.iterdir():
                files.remove(path)
            self.aside = 0, 0

    def run(self) -> str:
        """Which run the batches are of; "" when that is not known. Raises OSError."""
        return files.read(self._run, 100).decode("ascii", "replace") if self._run.is_file() else ""

    def begin(self, run: str) -> None:
        """Remove all batches; those to come are of `run`. Raises OSError: then they are of no run."""
        self._known.clear()
        files.remove(self._run)
        shutil.rmtree(self._old, ignore_errors=True)
        with suppress(FileNotFoundError):  # the last time it came no further
            self.batches.rename(self._old)  # at once; to remove them takes a while
        shutil.rmtree(self._old, ignore_errors=True)  # before the first write, which may need the room
        self.batches.mkdir(0o700)
        files.write(self._run, run.encode())

    def scan(self) -> Iterator[ScannedFile]:
        """All files, in no order; those that a killed process left half-written are removed. Raises OSError."""
        for device in _folders(self.batches):
            known = bool(ID.fullmatch(device.name))
            for folder in _folders(device.path):
                with os.scandir(folder.path) as entries:
                    for entry in entries:
                        if files.is_left_over(entry.name):
                            files.remove(Path(entry.path))
                        else:
                            yield _scanned(entry, device.name if known else "", folder.name)

    def _folder(self, key: Key) -> Path:
        return self.batches / key[0] / f"{key[1] >> 8:02x}"


def advice(error: OSError) -> str:
    """What to do about a write that failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full ({error.strerror}); free space, or set cache.budget_mib to less than is stored now, "
            "so that older batches make room"
        )
    return f"{error.strerror}; look after this disk, or set another cache.dir"


def _scanned(entry: os.DirEntry[str], device: str, folder: str) -> ScannedFile:
    stat = entry.stat(follow_symlinks=False)
    match = _NAME.fullmatch(entry.name) if device and entry.is_file(follow_symlinks=False) else None
    if not match or folder != f"{int(match[1]) >> 8:02x}":
        return ScannedFile(entry.path, None, Row(0, 0, stat.st_size), 0)
    row = Row(int(match[2]), int(match[3], 16), stat.st_size)
    return ScannedFile(entry.path, (device, int(match[1])), row, max(stat.st_mtime_ns, 0))


def _folders(parent: Path | str) -> list[os.DirEntry[str]]:
    with os.scandir(parent) as entries:
        return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
