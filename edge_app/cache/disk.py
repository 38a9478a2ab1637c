"""Level 2 of the replay cache: every batch, newest version only, on disk (paper, section IV-B).

    ROOT/lock     held while a DiskCache is open
    ROOT/...      one HDF5 file a batch: batch_files.py says where, hdf5.py what is inside

The older version is removed only when the newer one is whole under its own name; and on the disk, unless `durability` is
"none". So a kill or a power cut leaves the older version, the newer one or both, never a mix; and the next start keeps
the newest that is whole. A start reads names, and files only where a batch has several.
"""

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edge_app.cache import hdf5_template
from edge_app.cache.batch_files import LIMIT, BatchFiles, Entry, advice
from edge_app.cache.catalogue import Catalogue, Entered
from edge_app.cache.eviction import POLICIES
from edge_app.cache.index import Key, Row
from emo import files
from emo.config import ID
from emo.errors import CacheError, nearest

Array = NDArray[Any]

DURABILITIES = ("batch", "group", "none")
_PROGRESS = 10_000  # files
_COUNTS = ("stored", "ignored", "hits", "misses", "evicted", "refused")


class DiskCache(AbstractContextManager["DiskCache"]):
    """One HDF5 file a (device, batch) under `root`, which is made when missing.

    `budget_bytes`: of all files, whenever no put is under way; `eviction`, one of eviction.POLICIES, says what is removed when
    it is full, in fair shares a device. `durability`: "batch": a put is on the disk when it returns; "group": when `flush` has
    returned; "none": at some time. `say`: is told at start how many files were seen so far. `on_evict`: to be set; is
    told device and batch of each that was evicted, with no lock held.

    Any thread may call, `flush` one; of two puts of one key at a time the newer version stays. One lock guards index
    and counters, and no I/O is done under it; another lets one flush or `begin` run at a time. Raises CacheError when the
    folder cannot be used or another DiskCache, of this process or another, has it open.
    """

    def __init__(
        self,
        root: Path | str,
        budget_bytes: int | None = None,
        eviction: str = "oldest",
        *,
        durability: str = "batch",
        say: Callable[[int], None] | None = None,
    ) -> None:
        for name, known in ((eviction, POLICIES), (durability, DURABILITIES)):
            if name not in known:
                raise CacheError(f"no eviction or durability is called {name!r}; {nearest(name, known)}")
        self.on_evict: Callable[[str, int], None] | None = None
        self._root, self._budget = Path(root), budget_bytes
        self._durability, self._policy = durability, POLICIES[eviction]
        self._lock, self._flushing = threading.Lock(), threading.Lock()
        self._catalogue = Catalogue(self._policy, budget_bytes)
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._handle = -1
        try:
            files.make_folder(self._root)
            self._handle = files.lock(self._root / "lock")
            self._files = BatchFiles(self._root)
            older = self._rebuild(say)
            if durability != "none" and self._catalogue.index.total:
                os.sync()  # now older versions may go, and a batch that is put again is on the disk
            self._carry_out(self._catalogue.shrink(older))
        except BaseException as error:
            self._unlock()
            if not isinstance(error, OSError):
                raise
            why = f"the cache folder cannot be used: {error.strerror}"
            if isinstance(error, BlockingIOError):
                why = "another edge has this cache open; stop it, or set another cache.dir"
            raise CacheError(f"{root}: {why}") from error

    def put(self, device: str, batch: int, version: int, activations: Array | bytes, labels: Array) -> bool:
        """Store a batch, as durably as this cache is. False, and nothing changed, unless `version` is newer.

        `activations`: (N, ...) of floats or integers; or a full frame of emo.wire.codec, which is stored as it is.
        `labels`: (N, ...) of integers. Raises CacheError for others, for an id that is not one, and when there is no
        room or the disk fails: all that was stored before is then intact, and the next put is tried again.
        """
        key = self._key(device, batch)
        try:
            form = hdf5_template.form_of(activations, labels)
        except CacheError as error:
            raise CacheError(f"{key}: {error}") from error
        if not 0 <= version < LIMIT:
            raise CacheError(f"{key}: version {version} is not in 0 ... 10**19 - 1")
        with self._lock:
            if not self._is_newer(key, version):
                return False
        pieces, crc = hdf5_template.pack(form, device, batch, version, activations, labels)
        row = Row(version, crc, sum(map(len, pieces)))
        stored = None
        try:
            if self._budget is None or row.size <= self._budget:
                self._files.write(key, row, pieces, synced=self._durability == "batch")
                stored = self._enter(key, row)
        except OSError as error:
            raise self._refused(key, advice(error)) from error
        if stored is None:
            why = f"the budget of {self._budget} bytes has no room for its {row.size}; raise cache.budget_mib"
            raise self._refused(key, why)
        return stored

    def get(self, device: str, batch: int) -> Entry | None:
        """The newest version, or None. A file that is not what its name says is a miss: it is moved to
        ROOT/damaged and counted. Raises CacheError when the disk cannot be read for another reason.
        """
        key = self._key(device, batch)
        while True:
            with self._lock:
                row = self._catalogue.index.get(key)
                if row is None:
                    self._counts["misses"] += 1
                    return None
            entry = self._files.read(key, row)
            with self._lock:
                if entry is not None:
                    self._counts["hits"] += 1
                    return entry
                now = self._catalogue.index.get(key)
                if now is None or now.version != row.version:
                    continue  # another version took its place meanwhile: read that
                _, *below = self._catalogue.forget(key)
            self._files.set_aside(self._files.path(key, row), row.size)
            self._files.remove(below)

    def version(self, device: str, batch: int) -> int | None:
        """The stored version, from the index: no file is opened."""
        with self._lock:
            row = self._catalogue.index.get((device, batch))
        return None if row is None else row.version

    def keys(self) -> list[Key]:
        """All (device, batch), those with the oldest version first."""
        with self._lock:
            return self._catalogue.index.keys()

    def note_loss(self, device: str, batch: int, loss: float) -> None:
        """Mean loss of the newest version, when it was trained on. For eviction by "lowest-loss", else without effect."""
        with self._lock:
            self._catalogue.trained((device, batch), loss)

    def set_aside(self, device: str, batch: int, version: int) -> None:
        """Drop a batch, if this is its version; the file is moved to ROOT/damaged."""
        key = self._key(device, batch)
        with self._lock:
            row = self._catalogue.index.get(key)
            if row is None or row.version != version:
                return
            _, *below = self._catalogue.forget(key)
        self._files.set_aside(self._files.path(key, row), row.size)
        self._files.remove(below)

    def begin(self, run: str) -> bool:
        """Remove all batches, unless they are of `run` already: then False. Raises CacheError."""
        self._require_open()
        try:
            with self._flushing:
                if self._files.run() == run:
                    return False
                with self._lock:
                    self._catalogue = Catalogue(self._policy, self._budget, self._catalogue.turn)
                self._files.begin(run)
        except OSError as error:
            raise CacheError(f"{self._root}: cannot be cleared: {error.strerror}") from error
        return True

    def flush(self) -> None:
        """With durability "group": on return all that was put before is on the disk. Else there is nothing to do.

        Raises CacheError when a sync failed: of these batches the version that was synced before is there, and is
        what `get` gives; the newer one is lost. All others are on the disk.
        """
        self._require_open()
        with self._flushing:
            with self._lock:
                rows = self._catalogue.begin_sync()
            failed = self._files.sync(rows) if rows else {}
            with self._lock:
                lost = [failed[key] for key in self._catalogue.syncing if key in failed]
                gone = self._catalogue.end_sync(failed)
            self._files.remove(gone)
        if lost:
            raise CacheError(
                f"{self._root}: {len(lost)} of {len(rows)} batches could not be synced: {lost[0].strerror}. Of these the "
                "version before is kept, and the newer one has to come again. Look after this disk."
            )

    def stats(self) -> dict[str, int]:
        """Now: `entries`, `bytes` of their files (older versions that wait for a sync too), entries `unsynced`. Since
        this was opened: `stored ignored hits misses damaged evicted`, and puts `refused` by the disk or for want of room.
        """
        with self._lock:
            return {**self._catalogue.stats(), "damaged": self._files.damaged, **self._counts}

    def close(self) -> None:
        """Flush, and leave the folder to others; harmless twice. Other calls then raise CacheError, as may this one."""
        try:
            if self._handle >= 0:
                self.flush()
        finally:
            self._unlock()

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- inside

    def _unlock(self) -> None:
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def _rebuild(self, say: Callable[[int], None] | None) -> list[tuple[Key, Row]]:
        """Fill the catalogue from the files; what is not ours is set aside. Raises OSError.

        Of a batch's versions, which a killed process or a power cut may have left, the newest that is whole counts. Returns
        the older ones, to be removed when the others are on the disk.
        """
        several: dict[Key, list[Row]] = {}
        for count, (name, key, row, mtime) in enumerate(self._files.scan(), 1):
            if say and count % _PROGRESS == 0:
                say(count)
            if key is None:
                self._files.set_aside(Path(name), row.size)
            elif self._catalogue.index.get(key):
                several.setdefault(key, []).append(row)
            else:
                self._catalogue.add(key, row, mtime)
        older: list[tuple[Key, Row]] = []
        for key, rows in several.items():
            rows += [row for _, row in self._catalogue.forget(key)]
            for row in sorted(rows, reverse=True):
                path = self._files.path(key, row)
                if self._catalogue.index.get(key):
                    older.append((key, row))
                elif self._files.read(key, row):
                    self._catalogue.add(key, row, path.stat().st_mtime_ns)
                else:
                    self._files.set_aside(path, row.size)
        return older

    def _require_open(self) -> None:
        if self._handle < 0:
            raise CacheError(f"{self._root}: this cache is closed")

    def _key(self, device: str, batch: int) -> Key:
        self._require_open()
        if not ID.fullmatch(device) or not 0 <= batch < LIMIT:
            raise CacheError(f"({device!r}, {batch!r}) is not a device id and a batch number")
        return device, batch

    def _is_newer(self, key: Key, version: int) -> bool:  # with the lock held
        row = self._catalogue.index.get(key)
        newer = row is None or row.version < version
        self._counts["ignored"] += not newer
        return newer

    def _refused(self, key: Key, why: str) -> CacheError:
        with self._lock:
            self._counts["refused"] += 1
        return CacheError(f"{self._root}: batch {key[1]} of {key[0]} is not stored, all others are kept: {why}")

    def _enter(self, key: Key, row: Row) -> bool | None:
        """Index what was written. None where there is no room, False where it is not the newest; in both cases, and where
        OSError is raised, its file is removed."""
        grouped = self._durability == "group"
        stored = self._try(key, row, settled=not grouped)
        if stored is None and grouped:  # its own older versions take room until this one is synced
            failed = self._files.sync({key: row})
            if failed:
                self._files.remove([(key, row)])
                raise failed[key]
            stored = self._try(key, row, settled=True)
        if stored is None:
            self._files.remove([(key, row)])
        return stored

    def _try(self, key: Key, row: Row, *, settled: bool) -> bool | None:
        with self._lock:
            stored = self._is_newer(key, row.version)
            now = self._catalogue.index.get(key)
            if stored:
                entered = self._catalogue.enter(key, row, settled=settled)
            else:  # another thread has stored it since, or a newer one
                entered = Entered([] if now and now[:2] == row[:2] else [(key, row)], [])
            if entered is None:
                return None
            self._counts["stored"] += stored
        self._carry_out(entered)
        return stored

    def _carry_out(self, entered: Entered) -> None:
        """Remove files, those set aside too where the budget is short, and report what was evicted."""
        self._files.remove(entered.gone)
        if self._budget is not None and self._catalogue.index.total + self._files.aside[1] > self._budget:
            self._files.drop_aside()
        with self._lock:
            self._counts["evicted"] += len(entered.evicted)
        if self.on_evict:
            for key in entered.evicted:
                self.on_evict(*key)
