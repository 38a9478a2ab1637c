"""Rooms of bounded size that clients share: when one is full, whoever takes most of it gives way.

Used for connections, for bytes in memory, for requests that wait. A client is an address: a thousand connections from
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


class Guest(Waiting, Protocol):
    """What takes room."""

    @property
    def busy(self) -> bool:
        """Work would be lost with it: another of its client's goes first."""

    def leave(self) -> None:
        """Give way, now. It takes no room any more."""


G = TypeVar("G", bound=Guest)
W = TypeVar("W", bound=Waiting)
T = TypeVar("T")


class Room(Generic[G]):
    """`most`: what all guests may take together. Of a client's guests the largest gives way first, of equals the newest; with
    `oldest` the oldest, whatever its size."""

    def __init__(self, most: int, *, oldest: bool = False) -> None:
        self.most = most
        self.taken = 0
        self.shown_out = 0
        self._oldest = oldest
        self._guests: dict[str, dict[G, int]] = {}
        self._sums: dict[str, int] = {}

    def take(self, guest: G, size: int = 1) -> None:
        """`guest` takes `size` more. Where that is too much, guests leave, of the client that takes most first; one of
        them may be this one."""
        mine = self._guests.setdefault(guest.who, {})
        mine[guest] = mine.get(guest, 0) + size
        self._sums[guest.who] = self._sums.get(guest.who, 0) + size
        self.taken += size
        self._clear()

    def free(self, guest: G) -> None:
        """It takes no room any more; nothing happens where it took none."""
        mine = self._guests.get(guest.who, {})
        if guest in mine:
            size = mine.pop(guest)
            self.taken -= size
            self._sums[guest.who] -= size
            if not mine:
                del self._guests[guest.who], self._sums[guest.who]

    def is_most(self, who: str) -> bool:
        """Is it full, and nobody has more?"""
        return self.taken >= self.most and self._sums.get(who, 0) == max(self._sums.values())

    def next(self, may: Callable[[str], bool]) -> G | None:
        """The guest whose turn it is, which leaves with that: a client's oldest, one after the other of those that `may`."""
        for who, mine in self._guests.items():
            if may(who):
                guest = next(iter(mine))
                self.free(guest)
                if who in self._guests:
                    self._guests[who] = self._guests.pop(who)
                return guest
        return None

    def _clear(self) -> None:
        while self.taken > self.most:
            who = max(self._ordered(self._sums), key=self._sums.__getitem__)
            mine = self._guests[who]
            guests = self._ordered(mine)
            if not self._oldest:
                guests.sort(key=mine.__getitem__, reverse=True)
            guest = next((each for each in guests if not each.busy), guests[0])
            self.free(guest)
            self.shown_out += 1
            guest.leave()

    def _ordered(self, those: dict[T, int]) -> list[T]:
        """Of equals the first comes first."""
        return list(those) if self._oldest else list(those)[::-1]


def greediest(waiting: Collection[W]) -> W:
    """The newest of the client that has most of them. Where it is seldom asked this costs less than a Room."""
    counts = Counter(each.who for each in waiting)
    newest = list(waiting)[::-1]
    who = max((each.who for each in newest), key=counts.__getitem__)
    return next(each for each in newest if each.who == who)


@dataclass(frozen=True)
class Rooms:
    """Of one endpoint. `held`: bytes of bodies, and of answers that clients do not take."""

    connections: Room[Guest]
    held: Room[Guest]


@lru_cache(4096)
def client(address: str) -> str:
    """The client behind an address; "" for one that is none."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if not isinstance(found, IPv6Address):
        return address
    return str(found.ipv4_mapped or found.exploded[:19])
