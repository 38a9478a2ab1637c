"""Level 1 of the replay cache: tensors on the overlay's device, bounded in bytes (paper, section IV-B).

Knows batches as tensors and when each was last trained on. Knows no disk and no sampling.
Not thread-safe: the cache around it holds its lock. Nothing here copies a tensor.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch

Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Sample:
    """A batch to train on. `activations` (N, ...) float32, `labels` (N, ...) int64, on the overlay's device."""

    device: str
    batch: int
    version: int
    activations: torch.Tensor
    labels: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.activations.nbytes + self.labels.nbytes


class Memory:
    """At most `limit` bytes; what was trained on longest ago makes room."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._samples: OrderedDict[Key, Sample] = OrderedDict()  # trained on longest ago first
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._samples)

    def use(self, key: Key) -> Sample | None:
        """The batch, noted as the one trained on last; None when it is not here."""
        sample = self._samples.get(key)
        if sample is not None:
            self._samples.move_to_end(key)
        return sample

    def place(self, key: Key, sample: Sample) -> None:
        """Noted as the one trained on last. One that is larger than all of level 1 is not kept."""
        self.drop(key)
        if sample.nbytes > self._limit:
            return
        while self.nbytes + sample.nbytes > self._limit:
            self.drop(next(iter(self._samples)))
        self._samples[key] = sample
        self.nbytes += sample.nbytes

    def drop(self, key: Key) -> None:
        sample = self._samples.pop(key, None)
        self.nbytes -= sample.nbytes if sample else 0

    def clear(self) -> None:
        self._samples.clear()
        self.nbytes = 0
