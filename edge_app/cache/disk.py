"""Level 2 of the replay cache: every batch, newest version only, on disk (paper, section IV-B).

    ROOT/lock                                      held while a DiskCache is open
    ROOT/batches/DEVICE/BB/BATCH-VERSION-CRC.h5    BB: BATCH mod 256, CRC: of the whole file, both hex
    ROOT/damaged/                                  files that were not what their name says
    ROOT/run                                       the run that the batches are of

Knows folders, names and HDF5; the only file that imports h5py. Knows no tensor, no sampling, no level 1.

The older version goes only when the newer one is whole under its own name. So a kill leaves the old
version, the new one or both, never a mix, and the next start keeps the newer. The name carries the
version and the checksum: start-up reads names only, and libhdf5 is given no byte that was not checked.

h5py holds one lock for the whole interpreter. Here it works in memory only: files are put together
and taken apart as byte strings; reading, writing and syncing happen outside.
"""

import errno
import fcntl
import os
import re
import shutil
import threading
import zlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from edge_app.cache import files
from emo.config import ID
from emo.errors import CacheError

Array = NDArray[Any]
Key = tuple[str, int]

_NAME = re.compile(r"(0|[1-9][0-9]{0,18})-(0|[1-9][0-9]{0,18})-([0-9a-f]{8})\.h5")
_LIMIT = 10**19  # what _NAME can read back
_hdf5 = threading.Lock()  # two files of one name in memory are one file to libhdf5; h5py is serial anyway


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored batch. `activations` (N, ...) and `labels` (N, ...) as they were put, dtypes too."""

    device: str
    batch: int
    version: int
    activations: Array
    labels: Array


@dataclass(frozen=True, slots=True)
class _Stored:
    version: int
    crc: int
    size: int
    path: Path


class DiskCache(AbstractContextManager["DiskCache"]):
    """One HDF5 file a (device, batch) under `root`, which is made when missing.

    Any thread may call; of two puts of one key at a time the newer version stays. One lock guards the
    index and the counters, and is held for no I/O. Raises CacheError when the folder cannot be used
    or another DiskCache, of this process or another, has it open.
    """

    def __init__(self, root: Path | str) -> None:
        self._root = Path(root)
        self._batches, self._damaged = self._root / "batches", self._root / "damaged"
        self._lock = threading.Lock()
        self._index: dict[Key, _Stored] = {}
        self._counts = dict.fromkeys(("stored", "ignored", "hits", "misses", "damaged"), 0)
        self._handle = -1
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._batches.mkdir(exist_ok=True)
            self._damaged.mkdir(exist_ok=True)
            files.sync(self._root)
            self._rebuild()
        except OSError as error:
            self.close()
            why = f"the cache folder cannot be used: {error.strerror}"
            if isinstance(error, BlockingIOError):
                why = "another edge has this cache open; stop it, or set another cache.dir"
            raise CacheError(f"{root}: {why}") from error

    def put(self, device: str, batch: int, version: int, activations: Array, labels: Array) -> bool:
        """Store a batch; on return it is on the disk. False, and nothing changed, unless `version` is newer.

        `activations` (N, ...) of floats or integers, `labels` (N, ...) of integers. Raises CacheError
        for other arrays, for an id that is not one, and when the disk is full or fails: the version
        before it is then intact.
        """
        key = self._key(device, batch)
        _check(key, version, activations, labels)
        with self._lock:
            if not self._is_newer(key, version):
                return False
        image = _pack(Entry(device, batch, version, activations, labels))
        crc = zlib.crc32(image)
        path = self._folder(key) / f"{batch}-{version}-{crc:08x}.h5"
        try:
            files.make_folder(path.parent, self._batches)
            files.write(path, image)
        except OSError as error:
            raise CacheError(
                f"{path}: cannot be stored: {error.strerror}; the version before it is kept. "
                "Free space on this disk, or set another cache.dir."
            ) from error
        old: _Stored | None = _Stored(version, crc, len(image), path)
        with self._lock:  # another thread may have stored a newer one since
            newer = self._is_newer(key, version)
            if old is not None and newer:
                self._index[key], old = old, self._index.get(key)
                self._counts["stored"] += 1
        if old is not None:
            files.remove(old.path)
        return newer

    def get(self, device: str, batch: int) -> Entry | None:
        """The newest version, or None. A file that is not what its name says is a miss: it is moved to
        ROOT/damaged and counted. Raises CacheError when the disk cannot be read for another reason.
        """
        key = self._key(device, batch)
        while True:
            with self._lock:
                stored = self._index.get(key)
                if stored is None:
                    self._counts["misses"] += 1
                    return None
            try:
                entry = _unpack(key, stored, files.read(stored.path, stored.size))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EIO):
                    raise CacheError(f"{stored.path}: cannot be read: {error.strerror}") from error
                entry = None
            with self._lock:
                if entry is not None:
                    self._counts["hits"] += 1
                    return entry
                if self._index.get(key) != stored:
                    continue  # a newer version took its place meanwhile: read that
                del self._index[key]
            self._set_aside(stored.path)

    def version(self, device: str, batch: int) -> int | None:
        """The stored version, from the index: no file is opened."""
        with self._lock:
            stored = self._index.get((device, batch))
        return None if stored is None else stored.version

    def keys(self) -> list[Key]:
        """All (device, batch), those with the oldest version first."""
        with self._lock:
            rows = list(self._index.items())
        return [key for key, _ in sorted(rows, key=lambda row: (row[1].version, row[0]))]

    def delete(self, device: str, batch: int) -> bool:
        """Remove a batch. False when there is none."""
        with self._lock:
            stored = self._index.pop(self._key(device, batch), None)
        if stored is not None:
            files.remove(stored.path)
        return stored is not None

    def begin(self, run: str) -> bool:
        """Remove all batches, at once and for good; False when they are of `run` already. Raises CacheError."""
        self._require_open()
        old, marker = self._root / "old", self._root / "run"
        try:
            if marker.is_file() and files.read(marker, 100) == run.encode():
                return False
            with self._lock:
                self._index.clear()
            shutil.rmtree(old, ignore_errors=True)
            self._batches.rename(old)
            self._batches.mkdir()
            files.write(marker, run.encode())
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise CacheError(f"{self._root}: cannot be cleared: {error.strerror}") from error
        return True

    def stats(self) -> dict[str, int]:
        """`entries` and their `bytes` now; `stored ignored hits misses damaged` since this was opened."""
        with self._lock:
            rows, counts = list(self._index.values()), dict(self._counts)
        return {"entries": len(rows), "bytes": sum(row.size for row in rows), **counts}

    def close(self) -> None:
        """Leave the folder to others; harmless twice. Other calls then raise CacheError."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_open(self) -> None:
        if self._handle < 0:
            raise CacheError(f"{self._root}: this cache is closed")

    def _key(self, device: str, batch: int) -> Key:
        self._require_open()
        if not ID.fullmatch(device) or not 0 <= batch < _LIMIT:
            raise CacheError(f"({device!r}, {batch!r}) is not a device id and a batch number")
        return device, batch

    def _is_newer(self, key: Key, version: int) -> bool:  # with the lock held
        stored = self._index.get(key)
        newer = stored is None or stored.version < version
        self._counts["ignored"] += not newer
        return newer

    def _folder(self, key: Key) -> Path:
        return self._batches / key[0] / f"{key[1] % 256:02x}"

    def _set_aside(self, path: Path) -> None:
        with self._lock:
            self._counts["damaged"] += 1
        try:
            path.replace(self._damaged / "-".join(path.relative_to(self._batches).parts))
        except OSError:
            files.remove(path)  # the disk may be failing: what cannot be moved is at least not met again

    def _rebuild(self) -> None:
        """The index from the names. Removes what a killed process left; sets aside what is not ours."""
        shutil.rmtree(self._root / "old", ignore_errors=True)
        for folder in self._batches.glob("*/*/"):
            for path in folder.iterdir():
                if files.is_left_over(path):
                    files.remove(path)
                    continue
                match = _NAME.fullmatch(path.name)
                key = (folder.parent.name, int(match[1]) if match else 0)
                if not match or not ID.fullmatch(key[0]) or folder != self._folder(key):
                    self._set_aside(path)
                    continue
                found = [_Stored(int(match[2]), int(match[3], 16), path.lstat().st_size, path)]
                found += [self._index[key]] if key in self._index else []
                self._index[key], *older = sorted(found, key=lambda each: -each.version)
                for each in older:
                    files.remove(each.path)


def _check(key: Key, version: int, activations: Array, labels: Array) -> None:
    if not 0 <= version < _LIMIT:
        raise CacheError(f"{key}: version {version} is not in 0 ... 10**19 - 1")
    if activations.dtype.kind not in "fiu" or labels.dtype.kind not in "iu":
        raise CacheError(f"{key}: cannot store {activations.dtype} activations with {labels.dtype} labels")
    if not activations.ndim or not labels.ndim or len(activations) != len(labels):
        raise CacheError(f"{key}: activations {activations.shape} and labels {labels.shape} do not fit")


def _content_crc(activations: Array, labels: Array) -> int:
    return zlib.crc32(labels.data, zlib.crc32(activations.data))


def _pack(entry: Entry) -> bytes:
    """An HDF5 file as bytes: datasets `activations` and `labels`, the rest as attributes."""
    activations, labels = np.ascontiguousarray(entry.activations), np.ascontiguousarray(entry.labels)
    attributes = {
        "device": np.bytes_(entry.device.encode()),
        "batch": np.uint64(entry.batch),
        "version": np.uint64(entry.version),
        "shape": np.array(activations.shape, np.uint64),
        "dtype": np.bytes_(activations.dtype.str.encode()),
        "crc32": np.uint32(_content_crc(activations, labels)),
    }
    room = activations.nbytes + labels.nbytes + 2**14
    with _hdf5, h5py.File("batch", "w", driver="core", backing_store=False, block_size=room) as file:
        file.create_dataset("activations", data=activations)
        file.create_dataset("labels", data=labels)
        file.attrs.update(attributes)
        file.flush()
        return bytes(file.id.get_file_image())


def _unpack(key: Key, stored: _Stored, image: bytes) -> Entry | None:
    """None unless these are the bytes that were written for this key and version."""
    if len(image) != stored.size or zlib.crc32(image) != stored.crc:
        return None
    try:
        with _hdf5, h5py.File(h5py.h5f.open_file_image(image)) as file:
            of = (bytes(file.attrs["device"]).decode(), int(file.attrs["batch"]), int(file.attrs["version"]))
            activations, labels = np.asarray(file["activations"]), np.asarray(file["labels"])
            crc = int(file.attrs["crc32"])
    except (OSError, KeyError, ValueError, TypeError, RuntimeError):
        return None  # whole, but not a file of ours
    if of != (*key, stored.version) or crc != _content_crc(activations, labels):
        return None
    return Entry(*key, stored.version, activations, labels)
