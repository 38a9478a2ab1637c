"""Arrays that worker processes read where they lie: memory shared with them, under no name that could be left behind."""

import ctypes
import math
import multiprocessing
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from emo.data.dataset import Dataset

_ALIGN = 64


class Shared:
    """`arrays`, copied. It can be given to a process that is spawned, as an argument, and to nobody else.

    The memory is a file without a name (multiprocessing's arena): it is gone with the last process that holds it.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._places: dict[str, tuple[int, str, tuple[int, ...]]] = {}
        end = 0
        for name, array in arrays.items():
            self._places[name] = end, array.dtype.str, array.shape
            end += -(-array.nbytes // _ALIGN) * _ALIGN
        self._memory = multiprocessing.get_context("spawn").RawArray(ctypes.c_uint8, max(end, 1))
        for name, array in arrays.items():
            self._view(name)[...] = array

    def __getitem__(self, name: str) -> np.ndarray:
        """Read-only: others read it too."""
        view = self._view(name)
        view.flags.writeable = False
        return view

    def _view(self, name: str) -> np.ndarray:
        start, dtype, shape = self._places[name]
        return np.frombuffer(memoryview(self._memory), np.dtype(dtype), math.prod(shape), start).reshape(shape)


class SharedData:
    """A training set, and the rows (int64) of each device's share of it."""

    def __init__(self, dataset: Dataset, shares: Sequence[NDArray[np.int64]]) -> None:
        self._classes = dataset.classes
        self._shared = Shared(
            {
                "images": dataset.images,
                "labels": dataset.labels,
                "mean": dataset.mean,
                "std": dataset.std,
                "rows": np.concatenate(shares),
                "ends": np.cumsum([len(rows) for rows in shares]),
            }
        )

    def dataset(self) -> Dataset:
        arrays = self._shared
        return Dataset(arrays["images"], arrays["labels"], self._classes, arrays["mean"], arrays["std"])

    def rows(self, device: int) -> NDArray[np.int64]:
        """Of device number `device`, ascending."""
        ends = self._shared["ends"]
        return self._shared["rows"][ends[device - 1] if device else 0 : ends[device]]
