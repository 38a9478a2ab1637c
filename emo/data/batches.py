"""Fixed batches: batch j of a device is the same samples in the same order for the whole run.

SVCCA compares a batch's activation with its own earlier one, so only the order of batches is shuffled, never their
content.
"""

from typing import NamedTuple

import numpy as np
import torch

from emo.data.dataset import Dataset
from emo.errors import DataError


class Batch(NamedTuple):
    """inputs: float32 (n, C, ...), normalised; labels: int64 (n,)."""

    id: int
    inputs: torch.Tensor
    labels: torch.Tensor


class FixedBatches:
    """`indices` (int64, distinct rows of `dataset`) shuffled once by `seed` and cut by `batch_size`.

    The last batch holds what is left. Raises DataError on rows that are none, out of range or twice there.
    """

    def __init__(self, dataset: Dataset, indices: np.ndarray, batch_size: int, seed: int) -> None:
        if batch_size < 1 or seed < 0:
            raise DataError(f"batch size {batch_size} must be at least 1 and seed {seed} not negative")
        if indices.ndim != 1 or indices.dtype.kind not in "iu" or not len(indices):
            raise DataError(f"rows of a share must be integers (n,), n > 0; found {indices.dtype} {indices.shape}")
        if indices.min() < 0 or indices.max() >= len(dataset.labels) or len(np.unique(indices)) < len(indices):
            raise DataError(f"rows of a share must be distinct and below {len(dataset.labels)}")
        self.samples = len(indices)
        self._dataset = dataset
        self.seed = seed
        # The leading number keeps content and order apart: SeedSequence reads [s] and [s, 0, 0] as one seed.
        shuffled = np.random.default_rng([0, seed]).permutation(indices)
        self._rows = np.split(shuffled, range(batch_size, len(shuffled), batch_size))

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, j: int) -> np.ndarray:
        """Of batch `j`: int64 (n,)."""
        return self._rows[j]

    def batch(self, j: int) -> Batch:
        """Batch `j`, 0 <= j < len(self), as new tensors."""
        if not 0 <= j < len(self):
            raise IndexError(j)
        return Batch(j, *tensors(self._dataset, self._rows[j]))

    def order(self, round: int, epoch: int) -> list[int]:
        """All batch ids, shuffled by (seed, round, epoch)."""
        shuffled = np.random.default_rng([1, self.seed, round, epoch]).permutation(len(self))
        return [int(j) for j in shuffled]


def tensors(dataset: Dataset, rows: np.ndarray | slice) -> tuple[torch.Tensor, torch.Tensor]:
    """(inputs, labels) of these rows: float32 (n, C, ...), (raw - mean) / std by channel, and int64 (n,). Copies."""
    shape = (-1,) + (1,) * (dataset.images.ndim - 2)
    raw = torch.tensor(dataset.images[rows], dtype=torch.float32)
    inputs = raw.sub_(torch.tensor(dataset.mean).view(shape)).div_(torch.tensor(dataset.std).view(shape))
    return inputs, torch.tensor(dataset.labels[rows])
