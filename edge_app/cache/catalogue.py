"""What is on the disk, and what has to be removed when something is added. Not thread-safe: the disk cache holds its lock, and
then removes the files that it is told of. Until then each file counts as its device's.

A batch has one file, its newest version. Where versions are synced in groups it has up to three: the newest, which the
index names; the one that is being synced; and the newest synced one, which is there if all else fails.
"""

from collections.abc import Container
from typing import NamedTuple

from edge_app.cache.eviction import Evictor, Policy
from edge_app.cache.index import Index, Key, Row


class Entered(NamedTuple):
    """What follows from a new batch. `gone`: files to remove; `evicted`: batches."""

    gone: list[tuple[Key, Row]]
    evicted: list[Key]


class Catalogue:
    """`budget`: bytes of all files, None: no limit. `turn`: of what was stored last; it only grows.

    `waiting`: batches whose newest version waits for a sync; `syncing`: those that waited when the sync under way began; each
    with the row of the version before, None where there is none.
    """

    def __init__(self, policy: Policy, budget: int | None = None, turn: int = 0) -> None:
        self.index, self.turn = Index(), turn
        self.waiting: dict[Key, Row | None] = {}
        self.syncing: dict[Key, Row | None] = {}
        self._policy = policy
        self._evictor = None if budget is None else Evictor(self.index, budget)

    def stats(self) -> dict[str, int]:
        """`unsynced`: batches whose newest version is not on the disk for certain."""
        unsynced = len(self.waiting.keys() | self.syncing.keys())
        return {"entries": len(self.index), "bytes": self.index.total, "unsynced": unsynced}

    def add(self, key: Key, row: Row, turn: int) -> None:
        """The file of a batch's newest version."""
        self.index.charge(key[0], row.size)
        self._newest(key, row, turn)

    def enter(self, key: Key, row: Row, *, settled: bool) -> Entered | None:
        """The file of `row`, newer than what is stored, is written; if `settled`, synced too, else the version before stays
        until a sync. None, and nothing changed, where there is no room that this device may take.
        """
        old = self.index.get(key)
        superseded = [old] if old and (settled or key in self.waiting) else []
        superseded += self._below(key) if settled else []
        victims: list[Key] | None = []
        if self._evictor:
            more = row.size - sum(old.size for old in superseded)
            victims = self._evictor.victims(key, more, self._freed)
        if victims is None:
            return None
        if settled:
            self.waiting.pop(key, None)
            self.syncing.pop(key, None)
        else:
            self.waiting.setdefault(key, old)
        gone = self._gone(key, superseded)
        self.add(key, row, self.turn + 1)
        return self._evicted(victims, gone)

    def shrink(self, gone: list[tuple[Key, Row]]) -> Entered:
        """To the budget as it is now. `gone`: what is removed anyway."""
        victims = self._evictor.victims(None, 0, self._freed) if self._evictor else []
        return self._evicted(victims or [], gone)

    def forget(self, key: Key) -> list[tuple[Key, Row]]:
        """Drop a batch; all its files, the newest version's first."""
        rows = self._all(key)
        self.index.pop(key)
        self.waiting.pop(key, None)
        self.syncing.pop(key, None)
        return self._gone(key, rows)

    def begin_sync(self) -> dict[Key, Row]:
        """What waits, which is being synced from now on. One sync at a time."""
        self.syncing, self.waiting = self.waiting, {}
        return {key: row for key in self.syncing if (row := self.index.get(key))}

    def end_sync(self, failed: Container[Key]) -> list[tuple[Key, Row]]:
        """What was being synced is on the disk, but for what `failed`: there the version before takes its place. Returns the
        files that nobody needs any more."""
        gone: list[tuple[Key, Row]] = []
        for key, below in self.syncing.items():
            if key not in failed:
                rows = [below]
            elif key in self.waiting:  # a newer version has come meanwhile
                rows, self.waiting[key] = [self.waiting[key]], below
            else:
                rows = [self.index.get(key)]
                self.index.pop(key)
                if below:
                    self._newest(key, below, self.turn)
            gone += self._gone(key, [row for row in rows if row])
        self.syncing = {}
        return gone

    def trained(self, key: Key, loss: float) -> None:
        row = self.index.get(key)
        if row and self._evictor:
            rank = self._policy.trained(row.rank, loss)
            if rank != row.rank:
                self._place(key, row._replace(rank=rank))

    def _below(self, key: Key) -> list[Row]:
        """A batch's files other than the newest version's."""
        return [row for rows in (self.waiting, self.syncing) if (row := rows.get(key))]

    def _all(self, key: Key) -> list[Row]:
        newest = self.index.get(key)
        return ([newest] if newest else []) + self._below(key)

    def _evicted(self, victims: list[Key], gone: list[tuple[Key, Row]]) -> Entered:
        return Entered(gone + [item for victim in victims for item in self.forget(victim)], victims)

    def _freed(self, key: Key) -> int:
        return sum(row.size for row in self._all(key))

    def _gone(self, key: Key, rows: list[Row]) -> list[tuple[Key, Row]]:
        for row in rows:
            self.index.charge(key[0], -row.size)
        return [(key, row) for row in rows]

    def _newest(self, key: Key, row: Row, turn: int) -> None:
        self.turn = max(self.turn, turn)
        self._place(key, row._replace(rank=self._policy.stored(row.version, turn)))

    def _place(self, key: Key, row: Row) -> None:
        self.index.set(key, row)
        if self._evictor:
            self._evictor.ranked(key, row.rank)
