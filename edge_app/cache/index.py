"""Which files are stored, by device and batch, in about 170 bytes a batch; and how many bytes each device holds. Not
thread-safe: the disk cache holds its lock."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

Key = tuple[str, int]

_ROW = struct.Struct("<QIQQ")


class Row(NamedTuple):
    """One file. `size` in bytes. `rank`: among its device's the lowest goes first; 0 without a budget."""

    version: int
    crc: int
    size: int
    rank: int = 0


class Index:
    """`held`: device -> bytes of its files, those included that no row names any more but that are not removed yet."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[int, bytes]] = {}
        self._count = 0
        self.held: dict[str, int] = {}
        self.total = 0

    def __len__(self) -> int:
        return self._count

    def get(self, key: Key) -> Row | None:
        packed = self._rows.get(key[0], {}).get(key[1])
        return None if packed is None else Row(*_ROW.unpack(packed))

    def set(self, key: Key, row: Row) -> None:
        rows = self._rows.setdefault(key[0], {})
        self._count += key[1] not in rows
        rows[key[1]] = _ROW.pack(*row)

    def pop(self, key: Key) -> None:
        if self._rows.get(key[0], {}).pop(key[1], None) is not None:
            self._count -= 1

    def of(self, device: str) -> Iterator[tuple[int, Row]]:
        """(batch, row)."""
        for batch, packed in self._rows.get(device, {}).items():
            yield batch, Row(*_ROW.unpack(packed))

    def count(self, device: str) -> int:
        return len(self._rows.get(device, ()))

    def keys(self) -> list[Key]:
        """Those with the oldest version first."""
        rows = [(row.version, device, batch) for device in self._rows for batch, row in self.of(device)]
        return [(device, batch) for _, device, batch in sorted(rows)]

    def charge(self, device: str, size: int) -> None:
        """A file of that many bytes has been added; with a negative size, removed."""
        self.total += size
        self.held[device] = self.held.get(device, 0) + size
        if not self.held[device]:
            del self.held[device]
