"""Seeds what torch draws in a training step, so that nobody else in the process changes it.

torch has one generator a device for the whole process: with dropout the bits would depend on who trained before, and on
which thread. Here each step has its own seed; afterwards the generator is as it was.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_TURN = threading.RLock()  # the generators are the process's


def of(*parts: int | str) -> int:
    """A seed, 0 to 2**63 - 1, made of `parts`; the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1


class Draws:
    """For one module, on one thread, on `device`. Modules that draw take turns. One whose first step drew nothing no longer
    waits, so devices without dropout train side by side."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._generators = [torch.default_generator]
        if device is not None and device.type == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            number = torch.cuda.current_device() if device.index is None else device.index
            self._generators.append(torch.cuda.default_generators[number])
        self._draws: bool | None = None

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        if not _TURN.acquire(blocking=self._draws is not False):
            yield
            return
        before = [generator.get_state() for generator in self._generators]
        try:
            for generator in self._generators:
                generator.manual_seed(seed)
            begun = [generator.get_state() for generator in self._generators] if self._draws is None else []
            yield
            if self._draws is None:
                ended = [generator.get_state() for generator in self._generators]
                self._draws = not all(map(torch.equal, begun, ended))
        finally:
            for generator, state in zip(self._generators, before, strict=True):
                generator.set_state(state)
            _TURN.release()
