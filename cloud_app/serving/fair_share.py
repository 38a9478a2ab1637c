"""Shares what is bounded among clients: when it is used up, the client that takes most gives way.

Used for connections, bytes in memory and waiting requests. A client is an address: a thousand connections from
one address are one client, and so is an IPv6 network of 64 bits, which is what one customer is given.
"""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """`who`: its client."""

    who: str


class Holder(Waiting, Protocol):
    """What takes a part of it."""

    @property
    def busy(self) -> bool:
        """Work would be lost with it: another of its client's goes first."""

    def leave(self) -> None:
        """Give way, now. It takes no room any more."""


G = TypeVar("G", bound=Holder)
W = TypeVar("W", bound=Waiting)
T = TypeVar("T")


class FairShare(Generic[G]):
    """`most`: what all holders may take together. Of a client's holders the largest gives way first, of equals the newest; with
    `oldest` the oldest, whatever its size."""

    def __init__(self, most: int, *, oldest: bool = False) -> None:
        self.most = most
        self.taken = 0
        self.evicted = 0
        self._oldest = oldest
        self._holders: dict[str, dict[G, int]] = {}
        self._sums: dict[str, int] = {}

    def take(self, holder: G, size: int = 1) -> None:
        """`holder` takes `size` more. Where that is too much, holders leave, of the client that takes most first; one of
        them may be this one."""
        mine = self._holders.setdefault(holder.who, {})
        mine[holder] = mine.get(holder, 0) + size
        self._sums[holder.who] = self._sums.get(holder.who, 0) + size
        self.taken += size
        self._clear()

    def free(self, holder: G) -> None:
        """It takes no room any more; nothing happens where it took none."""
        mine = self._holders.get(holder.who, {})
        if holder in mine:
            size = mine.pop(holder)
            self.taken -= size
            self._sums[holder.who] -= size
            if not mine:
                del self._holders[holder.who], self._sums[holder.who]

    def is_most(self, who: str) -> bool:
        """Is it full, and nobody has more?"""
        return self.taken >= self.most and self._sums.get(who, 0) == max(self._sums.values())

    def next(self, may: Callable[[str], bool]) -> G | None:
        """The holder whose turn it is, which leaves with that: a client's oldest, one after the other of those that `may`."""
        for who, mine in self._holders.items():
            if may(who):
                holder = next(iter(mine))
                self.free(holder)
                if who in self._holders:
                    self._holders[who] = self._holders.pop(who)
                return holder
        return None

    def _clear(self) -> None:
        while self.taken > self.most:
            who = max(self._ordered(self._sums), key=self._sums.__getitem__)
            mine = self._holders[who]
            holders = self._ordered(mine)
            if not self._oldest:
                holders.sort(key=mine.__getitem__, reverse=True)
            holder = next((each for each in holders if not each.busy), holders[0])
            self.free(holder)
            self.evicted += 1
            holder.leave()

    def _ordered(self, those: dict[T, int]) -> list[T]:
        """Of equals the first comes first."""
        return list(those) if self._oldest else list(those)[::-1]


def greediest(waiting: Collection[W]) -> W:
    """The newest of the client that has most of them. Where it is seldom asked this costs less than a FairShare."""
    counts = Counter(each.who for each in waiting)
    newest = list(waiting)[::-1]
    who = max((each.who for each in newest), key=counts.__getitem__)
    return next(each for each in newest if each.who == who)


@dataclass(frozen=True)
class Shares:
    """Of one endpoint. `held`: bytes of bodies, and of answers that clients do not take."""

    connections: FairShare[Holder]
    held: FairShare[Holder]


@lru_cache(4096)
def client(address: str) -> str:
    """The client behind an address; "" for one that is none."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if not isinstance(parsed, IPv6Address):
        return address
    return str(parsed.ipv4_mapped or parsed.exploded[:19])
