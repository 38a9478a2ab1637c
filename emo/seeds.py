"""What torch draws in a training step follows from a seed, whoever else in this process draws.

torch has one generator a device for the whole process, so with dropout the bits would depend on who trained before, and
on which thread. Here each step has its own seed; afterwards the generator is as it was.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_TURN = threading.RLock()  # the generators are the process's


def of(*parts: int | str) -> int:
    """A seed, 0 to 2**63 - 1, for what `parts` name; the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1


class Draws:
    """For one module, on one thread, on `device`. Modules that draw take turns; one whose first step drew nothing waits
    for nobody, so devices without dropout train side by side."""

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
        before = [each.get_state() for each in self._generators]
        try:
            for each in self._generators:
                each.manual_seed(seed)
            begun = [each.get_state() for each in self._generators] if self._draws is None else []
            yield
            if self._draws is None:
                ended = [each.get_state() for each in self._generators]
                self._draws = not all(map(torch.equal, begun, ended))
        finally:
            for each, state in zip(self._generators, before, strict=True):
                each.set_state(state)
            _TURN.release()
