"""Which batch the overlay trains on next.

Knows keys, and which of them were trained on. Knows no version, no tensor, no disk.
Not thread-safe: the cache around it holds its lock.
"""

import numpy as np

Key = tuple[str, int]


class Mixed:
    """The paper's policy (section IV-B): batches never trained on first, the newest of them first; then
    uniform over all. `random` is the only source of chance: the same calls give the same keys.
    """

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._keys: list[Key] = []
        self._places: dict[Key, int] = {}  # key -> its place in _keys, so that removal costs no search
        self._fresh: dict[Key, None] = {}  # never trained on, in order of arrival

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def fresh(self) -> int:
        """Batches that `pick` has not named since they were added."""
        return len(self._fresh)

    def add(self, key: Key) -> None:
        """A new batch, or a new version of one: it has not been trained on, and is the newest."""
        if key not in self._places:
            self._places[key] = len(self._keys)
            self._keys.append(key)
        self._fresh.pop(key, None)
        self._fresh[key] = None

    def pick(self) -> Key | None:
        """The next one to train on, no longer fresh; None when there is none."""
        if self._fresh:
            return self._fresh.popitem()[0]
        return self._keys[self._random.integers(len(self._keys))] if self._keys else None

    def remove(self, key: Key) -> None:
        place = self._places.pop(key, None)
        if place is None:
            return
        self._fresh.pop(key, None)
        last = self._keys.pop()
        if last != key:
            self._keys[place] = last
            self._places[last] = place

    def clear(self) -> None:
        self._keys.clear()
        self._places.clear()
        self._fresh.clear()
