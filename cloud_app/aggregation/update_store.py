"""The updates of one round, each a file: for rules that have to see all of them at once.

    FOLDER/DEVICE.update     the arrays in the global model's order, their bytes one after another

Knows arrays, a folder and the order of devices. Knows no rule. Of one model's size in memory at a time; on the disk
as many as were asked. Nothing is synced and nothing outlives a process: devices are asked again.
"""

import itertools
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emo import files
from emo.errors import ConfigError, UpdateRefused

Weights = Mapping[str, np.ndarray]
_BLOCK = 1 << 20  # numbers in memory at once, of all devices together
_END = ".update"


class Block(NamedTuple):
    """Elements `start` to `start` + k of array `name`, flat: `rows` (devices, k), `like` (k,), both in its dtype."""

    name: str
    start: int
    like: np.ndarray
    rows: np.ndarray


class Spool:
    """Begins empty: what an earlier round or process has left in `folder` is removed. Without one, in a temporary
    folder of its own. One thread at a time."""

    def __init__(self, like: Weights, folder: Path | None = None) -> None:
        """Raises ConfigError when `folder` cannot be used."""
        self._like = like
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="emo-updates-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._folder = folder
        sizes = [array.nbytes for array in like.values()]
        self._at = dict(zip(like, itertools.accumulate(sizes, initial=0), strict=False))
        self._devices: set[str] = set()
        try:
            files.make_folder(self._folder)
            self.clear()
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be used: {error.strerror}") from error

    @property
    def devices(self) -> list[str]:
        """Whose updates are here, sorted: so that nothing depends on who came first."""
        return sorted(self._devices)

    def put(self, device: str, weights: Weights) -> None:
        """In place of what `device` has here. Raises UpdateRefused when the disk does not take it."""
        pieces = [np.ascontiguousarray(weights[name]).reshape(-1).view(np.uint8).data for name in self._like]
        try:
            files.write(self._folder / f"{device}{_END}", *pieces, synced=False)
        except OSError as error:
            raise UpdateRefused(f"the cloud cannot keep it: {self._folder}: {error.strerror}") from error
        self._devices.add(device)

    def weights(self, device: str) -> dict[str, np.ndarray]:
        """What `device` has put here. Raises UpdateRefused when it cannot be read."""
        return {
            name: self._read(device, name, 0, array.size).reshape(array.shape)
            for name, array in self._like.items()
        }

    def blocks(self) -> Iterator[Block]:
        """All arrays, piece by piece, of all devices in their order. Raises UpdateRefused when one cannot be read."""
        devices = self.devices
        step = max(1, _BLOCK // max(1, len(devices)))
        for name, array in self._like.items():
            flat = np.ascontiguousarray(array).reshape(-1)
            for start in range(0, array.size, step):
                size = min(step, array.size - start)
                rows = np.stack([self._read(device, name, start, size) for device in devices])
                yield Block(name, start, flat[start : start + size], rows)

    def clear(self) -> None:
        """Removes every update. Raises OSError."""
        for path in self._folder.iterdir():
            if path.name.endswith(_END) or files.is_left_over(path.name):
                files.remove(path)
        self._devices.clear()

    def _read(self, device: str, name: str, start: int, size: int) -> np.ndarray:
        path, dtype = self._folder / f"{device}{_END}", self._like[name].dtype
        try:
            found = np.fromfile(path, dtype, size, offset=self._at[name] + start * dtype.itemsize)
        except OSError as error:
            raise UpdateRefused(f"{path}: cannot be read again: {error.strerror}") from error
        if len(found) != size:
            raise UpdateRefused(f"{path}: is shorter than it was written")
        return found


def must_fit(like: Weights, devices: int, folder: Path | None) -> None:
    """Raises ConfigError when the updates of `devices` devices do not fit on the disk of `folder`."""
    there = folder or Path(tempfile.gettempdir())
    while not there.exists():
        there = there.parent
    needed, free = devices * sum(array.nbytes for array in like.values()), shutil.disk_usage(there).free
    if needed > free:
        raise ConfigError(
            f"rounds.aggregate and rounds.clip_norm keep {devices} updates, {needed >> 20} MiB, until a round is closed; "
            f"{there} has {free >> 20} MiB left. Make room there, ask fewer devices (rounds.per_round), or use "
            "aggregate: mean with a fixed clip_norm, which keep none"
        )
