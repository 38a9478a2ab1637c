"""The updates of one round, each a file: for rules that have to see all of them at once.

    FOLDER/DEVICE.update     the arrays in the global model's order, their bytes one after another

One model's size in memory at a time; on the disk as many as were asked. Nothing is synced and nothing outlives a
process: devices are asked again.
"""

import itertools
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emo import files
from emo.errors import ConfigError, UpdateRefused
from emo.wire.messages import Weights

_BLOCK = 1 << 20  # numbers in memory at once, of all devices together
_END = ".update"


class Block(NamedTuple):
    """Elements `start` to `start` + k of array `name`, flat: `rows` (devices, k), `like` (k,), both in its dtype."""

    name: str
    start: int
    like: np.ndarray
    rows: np.ndarray


class UpdateStore:
    """The files in `folder`, or in a temporary folder of its own. It begins empty: what an earlier round or process has
    left is removed. `like`: the model that the round started from; `samples`: what each device counts for. One
    thread at a time."""

    def __init__(self, like: Weights, folder: Path | None = None) -> None:
        """Raises ConfigError when `folder` cannot be used."""
        self.like = like
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="emo-updates-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._folder = folder
        sizes = [array.nbytes for array in like.values()]
        self._at = dict(zip(like, itertools.accumulate(sizes, initial=0), strict=False))
        self.samples: dict[str, int] = {}
        try:
            files.make_folder(self._folder)
            self.clear()
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be used: {error.strerror}") from error

    @property
    def devices(self) -> list[str]:
        """Whose updates are here, sorted: so that nothing depends on who came first."""
        return sorted(self.samples)

    def put(self, device: str, weights: Weights, samples: int) -> None:
        """In place of what `device` has here. Raises UpdateRefused when the disk does not take it."""
        pieces = [np.ascontiguousarray(weights[name]).reshape(-1).view(np.uint8).data for name in self.like]
        try:
            files.write(self._folder / f"{device}{_END}", *pieces, synced=False)
        except OSError as error:
            raise UpdateRefused(f"the cloud cannot keep it: {self._folder}: {error.strerror}") from error
        self.samples[device] = samples

    def weights(self, device: str) -> dict[str, np.ndarray]:
        """What `device` has put here. Raises UpdateRefused when it cannot be read."""
        return {name: self._read(device, name, 0, array.size).reshape(array.shape) for name, array in self.like.items()}

    def blocks(self) -> Iterator[Block]:
        """All arrays, piece by piece, of all devices in their order. Raises UpdateRefused when one cannot be read."""
        devices = self.devices
        step = max(1, _BLOCK // max(1, len(devices)))
        for name, array in self.like.items():
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
        self.samples.clear()

    def _read(self, device: str, name: str, start: int, size: int) -> np.ndarray:
        path, dtype = self._folder / f"{device}{_END}", self.like[name].dtype
        try:
            array = np.fromfile(path, dtype, size, offset=self._at[name] + start * dtype.itemsize)
        except OSError as error:
            raise UpdateRefused(f"{path}: cannot be read again: {error.strerror}") from error
        if len(array) != size:
            raise UpdateRefused(f"{path}: is shorter than it was written")
        return array


def must_fit(like: Weights, devices: int, folder: Path | None) -> None:
    """Raises ConfigError when the updates of `devices` devices do not fit on the disk of `folder`."""
    place = folder or Path(tempfile.gettempdir())
    while not place.exists():
        place = place.parent
    needed, free = devices * sum(array.nbytes for array in like.values()), shutil.disk_usage(place).free
    if needed > free:
        raise ConfigError(
            f"rounds.aggregate and rounds.clip_norm keep {devices} updates, {needed >> 20} MiB, until a round is closed; "
            f"{place} has {free >> 20} MiB left. Make room there, ask fewer devices (rounds.per_round), or use "
            "aggregate: mean with a fixed clip_norm, which keep none"
        )
