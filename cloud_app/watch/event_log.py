"""What has happened, newest last: entries for people, numbered, as many as are kept."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from emo.logs import printable

MOST = 2000  # entries
_FIELDS, _ITEMS, _TEXT = 32, 20, 300  # of an entry: fields, items of a list or a table, characters of a text

Level = Literal["info", "problem"]


@dataclass(frozen=True)
class Entry:
    """`time`: Unix, by the node's clock. `text`: one sentence. `fields`: the event's, cut to a few items."""

    number: int
    time: float
    node: str
    tier: str
    name: str
    level: Level
    text: str
    fields: dict[str, Any] = field(default_factory=dict)

    def shown(self) -> dict[str, Any]:
        return asdict(self)


class EventLog:
    def __init__(self, most: int = MOST) -> None:
        self._entries: deque[Entry] = deque(maxlen=most)
        self._next = 1

    @property
    def newest(self) -> int:
        """The number of the last entry; 0 before the first."""
        return self._next - 1

    def add(
        self, time: float, node: str, tier: str, name: str, level: Level, text: str, fields: Mapping[str, Any]
    ) -> Entry:
        entry = Entry(
            self._next, round(time, 3), node, tier, printable(name, 64), level, printable(text, _TEXT), cut(fields)
        )
        self._next += 1
        self._entries.append(entry)
        return entry

    def since(self, number: int) -> list[Entry]:
        """Entries after `number`, oldest first."""
        found: list[Entry] = []
        for entry in reversed(self._entries):
            if entry.number <= number:
                break
            found.append(entry)
        return found[::-1]

    def newest_first(
        self, before: int | None = None, node: str = "", name: str = "", level: str = ""
    ) -> Iterator[Entry]:
        for entry in reversed(self._entries):
            if (
                (before is None or entry.number < before)
                and node in {"", entry.node}
                and name in {"", entry.name}
                and level in {"", entry.level}
            ):
                yield entry


def cut(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What of an event's fields is kept."""
    return {printable(name, 64): _cut(value) for name, value in list(fields.items())[:_FIELDS]}


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value, _TEXT)
    if isinstance(value, dict):
        return {printable(name, 64): _cut(each) for name, each in list(value.items())[:_ITEMS]}
    if isinstance(value, list | tuple):
        return [_cut(each) for each in value[:_ITEMS]]
    return value
