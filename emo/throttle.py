"""Limits how often one node may cause the same thing: `burst` times at once, then `per_s` times a second."""

from collections import OrderedDict

_KEYS = 10_000


class Budget:
    """A limit for each key. The keys that were not used for longest are forgotten."""

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst, self._per_s = burst, per_s
        self._left: OrderedDict[tuple[str, ...], tuple[float, float]] = OrderedDict()

    def takes(self, key: tuple[str, ...], now: float) -> bool:
        """Whether `key` is within its limit; this use counts. `now`: seconds of a monotonic clock."""
        left, then = self._left.pop(key, (float(self._burst), now))
        left = min(self._burst, left + (now - then) * self._per_s)
        self._left[key] = left - (left >= 1), now
        if len(self._left) > _KEYS:
            self._left.popitem(last=False)
        return left >= 1


class Newest:
    """Holds the newest packet of each sender that is over `budget` until it is within it again; its older ones are dropped.
    One thread at a time."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._held: OrderedDict[str, tuple[str, bytes]] = OrderedDict()

    def holds(self, name: str, data: bytes, now: float) -> bool:
        """Whether the packet `data` of topic `name` has to wait. The topic without its last level is the sender."""
        sender = name.rpartition("/")[0]
        if sender not in self._held and self._budget.takes((sender,), now):
            return False
        self._held[sender] = name, data
        if len(self._held) > _KEYS:
            self._held.popitem(last=False)
        return True

    def due(self, now: float) -> list[tuple[str, bytes]]:
        """(topic, data) of those that need not wait any longer."""
        ready = [sender for sender in self._held if self._budget.takes((sender,), now)]
        return [self._held.pop(sender) for sender in ready]
