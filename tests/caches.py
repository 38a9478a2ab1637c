"""What the tests of the replay cache share."""

import errno
import os
import stat
from pathlib import Path

import numpy as np

LABELS = np.arange(4)
KEYS = [("d", 0), ("d", 1), ("other", 300)]
STEPS = ("open", "write", "fsync", "rename", "mkdir")


def acts(value, shape=(4, 3, 2, 2)):
    return np.full(shape, value, np.float32)


ONE = 3200 + 4 * 8 + acts(0).nbytes  # bytes of a file of these, not less


def remove(disk, device, batch):
    """As when its file is damaged."""
    version = disk.version(device, batch)
    if version is not None:
        disk.set_aside(device, batch, version)


def batch_files(root):
    return sorted(Path(root, "batches").rglob("*.h5"))


def everything(root):
    return sorted(p.relative_to(root).as_posix() for p in Path(root).rglob("*") if p.is_file())


def size_of(*folders):
    """Bytes of all files in them."""
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def version_of(disk, key):
    """0 when it is not there."""
    entry = disk.get(*key)
    if entry is None:
        return 0
    assert (entry.activations == entry.version).all()
    return entry.version


def drop(disk):
    """As a kill leaves it."""
    disk._unlock()


def unsynced(patch):
    """Syncs take most of the time of a test, and no test can tell whether they did anything."""
    patch.setattr(os, "fsync", lambda _handle: None)
    patch.setattr(os, "sync", lambda: None)


def fail_at(patch, number, failure=errno.EIO):
    """Let the `number`-th (from 1) of the system calls that write fail, and say which there were."""
    calls = []

    def failing(name, real):
        def call(*args, **kwargs):
            calls.append(name)
            if len(calls) == number:
                raise OSError(failure, os.strerror(failure))
            return real(*args, **kwargs)

        return call

    for name in STEPS:
        patch.setattr(os, name, failing(name, getattr(os, name)))
    return calls


class Power:
    """A disk that, when the power goes, has what was synced, and of all else what chance leaves."""

    def __init__(self, patch, root, saved, rng):
        self._root, self._saved, self._rng = Path(root), Path(saved), rng
        self._listings = {}  # folder -> name -> inode, as last synced
        self._saved.mkdir()
        patch.setattr(os, "fsync", self._synced)
        patch.setattr(os, "sync", self._all_synced)

    def _synced(self, handle):
        self._note(Path(f"/proc/self/fd/{handle}").readlink())

    def _all_synced(self):
        for path in [self._root, *self._root.rglob("*")]:
            self._note(path)

    def _note(self, path):
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            self._listings[path] = {each.name: each.lstat().st_ino for each in path.iterdir()}
        elif not (self._saved / str(status.st_ino)).exists():
            os.link(path, self._saved / str(status.st_ino))  # so that its number is not given to another

    def cut(self):
        for folder in [self._root, *(path for path in self._root.rglob("*") if path.is_dir())]:
            if folder.exists():
                self._cut(folder)

    def _cut(self, folder):
        synced = self._listings.get(folder, {})
        for path in folder.iterdir():
            if path.name not in synced and self._rng.random() < 0.5:
                self._remove(path)
            elif path.is_file() and not (self._saved / str(path.lstat().st_ino)).exists():
                data = path.read_bytes()
                path.write_bytes(data[: self._rng.randrange(len(data) + 1)] if self._rng.random() < 0.9 else data)
        for name, inode in synced.items():
            kept = self._saved / str(inode)
            if kept.exists() and not (folder / name).exists() and self._rng.random() < 0.5:
                os.link(kept, folder / name)  # its removal was not synced

    def _remove(self, path):
        if path.is_dir():
            for each in path.iterdir():
                self._remove(each)
            path.rmdir()
        else:
            path.unlink()
