"""What the cache knows of each batch beside its arrays: version, times trained on, loss, whether it is new.

Not thread-safe: the replay cache holds its lock. Batches have places 0, 1, ... without gaps, one row each, so the state of
100,000 is one copy of four megabytes.
"""

import base64
import binascii
import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_app.cache.index import Key
from emo.errors import CacheError

_ROW = np.dtype(
    [
        ("device", "<u4"),  # its place in the list of devices
        ("batch", "<u8"),
        ("version", "<u8"),
        ("trained", "<u4"),  # times, in this version
        ("loss", "<f8"),  # NaN: not known
        ("arrival", "<u8"),  # of new ones their order, 0 of others
    ]
)


class BatchRecords:
    """A batch is new from `add` until it is trained on, or a policy calls it `seen`."""

    def __init__(self) -> None:
        self._rows = np.zeros(64, _ROW)
        self._devices: dict[str, int] = {}
        self._keys: list[Key] = []
        self._places: dict[Key, int] = {}
        self._new: dict[Key, None] = {}  # the newest last
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    @property
    def fresh(self) -> int:
        """How many are new."""
        return len(self._new)

    def newest(self, count: int) -> list[Key]:
        """At most `count` new ones, those that came last first."""
        return list(itertools.islice(reversed(self._new), count))

    def keys(self) -> list[Key]:
        return list(self._keys)

    def version(self, key: Key) -> int | None:
        place = self._places.get(key)
        return None if place is None else int(self._rows["version"][place])

    def add(self, key: Key, version: int) -> None:
        """A new batch, or a new version of one: not trained on, its loss not known."""
        place = self._place(key)
        self._arrivals += 1
        device = self._devices.setdefault(key[0], len(self._devices))
        self._rows[place] = (device, key[1], version, 0, math.nan, self._arrivals)
        self._new.pop(key, None)
        self._new[key] = None
        self._changed(place)

    def trained(self, key: Key, loss: float) -> None:
        """`loss`: averaged with the known one. One that is not finite counts as 0, so that it is drawn rarely."""
        place = self._places.get(key)
        if place is None:
            return
        self.seen(key)
        known = float(self._rows["loss"][place])
        if not math.isfinite(loss):
            loss = 0.0
        elif not math.isnan(known):
            loss = (known + loss) / 2
        self._rows["loss"][place] = max(loss, 0.0)
        self._rows["trained"][place] += 1
        self._changed(place)

    def seen(self, key: Key) -> None:
        """No longer new."""
        if key in self._new:
            del self._new[key]
            self._rows["arrival"][self._places[key]] = 0

    def remove(self, key: Key) -> None:
        place = self._places.pop(key, None)
        if place is None:
            return
        self._new.pop(key, None)
        last = self._keys.pop()
        if last != key:
            self._keys[place], self._places[last] = last, place
            self._rows[place] = self._rows[len(self)]
            self._changed(place)
        self._changed(len(self))

    def clear(self) -> None:
        self._devices, self._keys, self._places, self._new = {}, [], {}, {}

    def column(self, name: str) -> NDArray[Any]:
        """A copy: `version` (uint64), `trained` (uint32) or `loss` (float64), one a batch."""
        return self._rows[name][: len(self)].copy()

    def state(self) -> dict[str, Any]:
        """A copy of everything, for `as_json`."""
        return {"devices": list(self._devices), "rows": self._rows[: len(self)].copy()}

    def resume(self, state: dict[str, Any]) -> None:
        """Take over what `state` has of batches that are here in the same version, and their order. Others are new.

        Raises CacheError, and changes nothing, when `state` is not what `as_json` gave.
        """
        try:
            devices = [str(name) for name in state["devices"]]
            rows = np.frombuffer(base64.b64decode(state["rows"], validate=True), _ROW)
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise CacheError(f"the state of the sampling is damaged: {error!r}") from error
        if len(rows) and rows["device"].max() >= len(devices):
            raise CacheError("the state of the sampling is damaged: it names a device that it does not list")
        if not (np.isnan(rows["loss"]) | ((rows["loss"] >= 0) & (rows["loss"] < math.inf))).all():
            raise CacheError("the state of the sampling is damaged: a loss is negative or infinite")
        here = {key: self.version(key) for key in self._keys}
        self.clear()
        new = []
        for row in rows:
            key = (devices[row["device"]], int(row["batch"]))
            if here.get(key) == row["version"] and key not in self:
                place = self._place(key)
                self._rows[place] = row
                self._rows["device"][place] = self._devices.setdefault(key[0], len(self._devices))
                self._rows["arrival"][place] = 0
                new += [(int(row["arrival"]), key)] if row["arrival"] else []
                self._changed(place)
        for self._arrivals, (_, key) in enumerate(sorted(new), 1):
            self._rows["arrival"][self._places[key]] = self._arrivals
            self._new[key] = None
        for key, version in here.items():
            if key not in self:
                self.add(key, version or 0)

    def _place(self, key: Key) -> int:
        place = self._places.setdefault(key, len(self))
        if place == len(self):
            self._keys.append(key)
            if place == len(self._rows):
                self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        return place

    def _changed(self, place: int) -> None:
        """For policies: the row at `place` has changed, or is gone."""


def as_json(state: dict[str, Any]) -> dict[str, Any]:
    """A `state` with its rows as text. Takes milliseconds for many rows: not to be called with the cache's lock held."""
    return {**state, "rows": base64.b64encode(state["rows"].tobytes()).decode()}
