"""Level 1 of the replay cache: tensors on the overlay's device, bounded in bytes (paper, section IV-B).

A slot holds one batch, activations float32 (N, ...) and labels int64, of the first batch's shapes; a batch with
fewer samples fits, one of another shape is not kept. Slots are made in blocks and stay: nothing is allocated in steady
state.

Not thread-safe but for `write` and `read`: the replay cache holds its lock, and releases it while these copy. A slot that was
given out (`use`, `reserve`) is nobody else's to write until `release`.
"""

import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edge_app.cache.index import Key

Array = NDArray[Any]
Shapes = tuple[tuple[int, ...], tuple[int, ...]]  # of activations, of labels

_BLOCK_SLOTS, _BLOCK_BYTES = 64, 32 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """A batch to train on. `activations` (N, ...) float32, `labels` (N, ...) int64, on the overlay's device: the
    caller's own. `weight`: what its loss is to be multiplied with, 1 on average; 1 unless sampling is `importance`.
    """

    device: str
    batch: int
    version: int
    activations: torch.Tensor
    labels: torch.Tensor
    weight: float = 1.0


@dataclass(slots=True, eq=False)
class Slot:
    activations: torch.Tensor
    labels: torch.Tensor
    pool: int  # TensorSlots.pool when it was made
    key: Key | None = None
    version: int = 0
    samples: int = 0
    users: int = 0
    was_read: torch.cuda.Event | None = None


class TensorSlots:
    """At most `limit` bytes on `device`. `pool`: how many times it was made anew."""

    def __init__(self, limit: int, device: torch.device | str = "cpu") -> None:
        self._limit, self._device = limit, torch.device(device)
        self._uploads: torch.cuda.Stream | None = None
        if self._device.type == "cuda":  # on the trainer's stream a copy would wait for all that is under way
            self._uploads = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # torch's own
        self._most: int | None = None
        self.pool, self._misfits, self._small = 0, 0, 0
        self.clear()

    def clear(self) -> None:
        """Empty it; the next batch decides the shape."""
        self._held: OrderedDict[Key, Slot] = OrderedDict()  # used longest ago first
        self._free: deque[Slot] = deque()
        self._shapes: Shapes | None = None
        self._made, self._slots, self._slot_bytes, self._small = 0, 0, 0, 0
        self.pool += 1

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: Key) -> bool:
        return key in self._held

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self._made * self._slot_bytes

    def hold(self, most: int) -> None:
        """Keep at most `most` batches from now on."""
        self._most = most
        while len(self._held) > most:
            self.drop(next(iter(self._held)))

    def use(self, key: Key) -> Slot | None:
        """The batch's slot, to be read and released; it counts as the one used last. None when it is not here."""
        slot = self._held.get(key)
        if slot is not None:
            self._held.move_to_end(key)
            self._misfits = 0
            slot.users += 1
        return slot

    def takes(self, shapes: Shapes) -> bool:
        """Whether a batch of these shapes fits into a slot."""
        if self._shapes is None:
            return _nbytes(shapes) <= self._limit
        return all(map(_within, shapes, self._shapes))

    def has_room(self, key: Key, ahead: Sequence[Key]) -> bool:
        """Whether `reserve` can give a slot to a batch of the usual shape."""
        if self._shapes is None:
            return self._limit > 0 and self._most != 0
        return self._taken() < self._capacity() or self._victim(key, ahead) is not None

    def reserve(self, key: Key, shapes: Shapes, ahead: Sequence[Key]) -> Slot | None:
        """A slot to write and release; None if there is no room for `key`.

        The batch that was used longest ago makes room, if it is not in `ahead`, the batches needed soon, in order. When all
        are, the one that is needed last does, if that is after `key`.
        """
        if not self._fits(shapes):
            return None
        while self._taken() >= self._capacity():
            victim = self._victim(key, ahead)
            if victim is None:
                return None
            self.drop(victim)
        if not self._free:
            self._grow()
        if not self._free:
            return None
        slot = self._free.popleft()
        slot.users += 1
        return slot

    def commit(self, slot: Slot, key: Key, version: int) -> bool:
        """A reserved slot that was written is `key`'s from now on, used last. False after a `clear` in between."""
        if slot.pool != self.pool:
            return False
        self.drop(key)
        slot.key, slot.version = key, version
        self._held[key] = slot
        if self._most is not None:
            self.hold(self._most)
        return True

    def release(self, slot: Slot) -> None:
        slot.users -= 1
        if not slot.users and slot.key is None and slot.pool == self.pool:
            self._free.append(slot)

    def drop(self, key: Key) -> None:
        slot = self._held.pop(key, None)
        if slot is not None:
            slot.key = None
            if not slot.users:
                self._free.append(slot)

    def write(self, slot: Slot, activations: Array, labels: Array) -> None:
        """Copy into the slot. Needs no lock."""
        slot.samples = len(activations)
        to = slot.activations[: slot.samples], slot.labels[: slot.samples]
        if self._uploads is None:
            np.copyto(to[0].numpy(), activations, casting="unsafe")
            np.copyto(to[1].numpy(), labels, casting="unsafe")
            return
        with torch.cuda.stream(self._uploads):
            if slot.was_read is not None:
                self._uploads.wait_event(slot.was_read)
            to[0].copy_(tensor(activations, np.float32))
            to[1].copy_(tensor(labels, np.int64))
        self._uploads.synchronize()

    def read(self, slot: Slot) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of activations and labels. Needs no lock."""
        copies = slot.activations[: slot.samples].clone(), slot.labels[: slot.samples].clone()
        if self._uploads is not None:
            slot.was_read = slot.was_read or torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own
            slot.was_read.record()
        return copies

    def _taken(self) -> int:
        return self._made - len(self._free)

    def _capacity(self) -> int:
        return self._slots if self._most is None else min(self._slots, self._most)

    def _victim(self, key: Key, ahead: Sequence[Key]) -> Key | None:
        soon = dict.fromkeys(ahead)
        for held, slot in self._held.items():
            if not slot.users and held not in soon:
                return held
        later = itertools.takewhile(lambda other: other != key, reversed(soon)) if key in soon else ()
        return next((other for other in later if other in self._held and not self._held[other].users), None)

    def _fits(self, shapes: Shapes) -> bool:
        """The first batch decides the shape. It was the odd one if more misfits come in a row than batches are held, or if most
        batches need no half of a slot: then all slots are made anew."""
        if not self.takes(shapes):
            self._misfits += 1
            if self._misfits <= len(self._held) or _nbytes(shapes) > self._limit:
                return False
            self.clear()
        self._small = max(0, self._small + (1 if 2 * _nbytes(shapes) <= self._slot_bytes else -1))
        if self._small > len(self._held):
            self.clear()
        self._misfits = 0
        if self._shapes is None:
            self._shapes, self._slot_bytes = shapes, _nbytes(shapes)
            self._slots = self._limit // self._slot_bytes
        return True

    def _grow(self) -> None:
        """Make one more block of slots. Where the device has no more memory, level 1 stays as large as it is."""
        assert self._shapes is not None
        count = min(_BLOCK_SLOTS, max(1, _BLOCK_BYTES // self._slot_bytes), self._slots - self._made)
        try:
            activations = torch.empty((count, *self._shapes[0]), device=self._device)
            labels = torch.empty((count, *self._shapes[1]), dtype=torch.int64, device=self._device)
        except RuntimeError:  # torch has no one class for it: on a CPU it raises this
            self._slots = self._made
            return
        self._made += count
        self._free += [Slot(*pair, self.pool) for pair in zip(activations, labels, strict=True)]


def tensor(array: Array, dtype: type[np.generic]) -> torch.Tensor:
    """On the CPU; shares the array's memory where it can."""
    return torch.from_numpy(np.require(array, dtype, ("C", "W")))


def _nbytes(shapes: Shapes) -> int:
    return max(1, 4 * math.prod(shapes[0]) + 8 * math.prod(shapes[1]))


def _within(shape: tuple[int, ...], largest: tuple[int, ...]) -> bool:
    return shape[1:] == largest[1:] and shape[:1] <= largest[:1]
