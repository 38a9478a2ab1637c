"""What a node tells observers of itself: its events as they happen, and in turn the figures of its journal.

A full or absent broker costs the node nothing: both kinds of message are droppable, and events are bounded. What goes wrong
here hurts no run: it is counted as `bugs`, and logged once. Counts:

    events.untold    more happened than may be told (200 at once, 20 a second; 50 at the end), or one is too large
"""

import functools
import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from emo.errors import TooLarge
from emo.journal import Journal
from emo.logs import printable
from emo.throttle import Budget
from emo.wire import frame, topics
from emo.wire.messages import Event, Message, Report, Role

log = logging.getLogger("emo")

_BURST, _PER_S = 200, 20.0  # events
_AT_ONCE, _AT_THE_END = 16, 50  # events in one look, so that they do not fill the outbox
_IDLE_S = 60.0  # between two reports of a node whose figures do not change
# These change by themselves, also where nothing happens.
_ALWAYS = ("machine.", "disk."), (".Report", ".Event", ".Status", ".RunHistory")
_WORDS = {"run": 64, "edge": 64, "doing": 64, "trouble": 200, "intervals": 64}  # characters
_NAME, _FIGURES = 64, 64
_ENTRY = 90  # bytes of the longest figure
_EVENT = topics.ROUTES[Event].limit - 1024
_REPORT = topics.ROUTES[Report].limit
# Of an event: its fields; items of a list, or the first few where these are too many; characters of a text, or the first few.
_FIELDS_OF_EVENT, _ITEMS, _FEW, _TEXT, _SHORT = 32, 2048, 32, 500, 30


class Reporter:
    """`about`: run, edge, doing, trouble and intervals as Report has them, each of which may be left out; is called on the
    thread that calls `due`. `every_s`: between two reports, at least, but for the last."""

    def __init__(
        self, node: str, role: Role, journal: Journal, about: Callable[[], Mapping[str, str]], every_s: float
    ) -> None:
        self._node, self._role, self._journal, self._about = node, role, journal, about
        self._every_s = every_s
        self._events: deque[tuple[int, dict[str, Any]]] = deque()
        self._lock = threading.Lock()
        self._budget, self._number = Budget(_BURST, _PER_S), 0
        self._looked = self._at = float("-inf")  # whether there is something to report; when the last report was
        self._told: dict[str, float] = {}  # figure -> as told last; in the order in which they were told
        self._words: dict[str, str] = {}
        self._failed = False
        journal.listen(self._happened)

    def _happened(self, record: dict[str, Any]) -> None:
        with self._lock:
            self._number += 1
            fits = self._budget.takes((), time.monotonic()) and len(self._events) < _BURST
            if fits:
                self._events.append((self._number, record))
        if not fits:
            self._journal.count("events.untold")

    def due(self, now: float, *, last: bool = False) -> Iterator[Message]:
        """What is to be told now. `now`: seconds of a monotonic clock. `last`: the node ends. Raises nothing."""
        for _ in range(_AT_THE_END if last else _AT_ONCE):
            with self._lock:
                if not self._events:
                    break
                item = self._events.popleft()
            event = self._tried(functools.partial(self._event, *item))
            if event is not None:
                yield event
        if last or now - self._looked >= self._every_s:
            self._looked = now
            idle = now - self._at < _IDLE_S and not last
            report = self._tried(lambda: self._report(idle=idle))
            if report is not None:
                self._at = now
                yield report
        if last and self._events:
            self._journal.count("events.untold", len(self._events))

    def _tried(self, make: Callable[[], Message | None]) -> Message | None:
        try:
            return make()
        except Exception:
            self._journal.count("bugs")
            if not self._failed:
                self._failed = True
                log.exception("%s: cannot tell observers how it does; it goes on without", self._node)
            return None

    def _event(self, number: int, record: dict[str, Any]) -> Event | None:
        fields = {name: value for name, value in record.items() if name not in {"time", "event"}}
        event = fitting(self._node, self._role, number, record["time"], record["event"], fields)
        if event is None:
            self._journal.count("events.untold")
        return event

    def _report(self, *, idle: bool) -> Report | None:
        """None where `idle` and nothing has changed."""
        snapshot = self._journal.snapshot()
        figures = {name: number for name, value in snapshot.items() if (number := _figure(name, value)) is not None}
        words = {key: printable(text, _WORDS[key]) for key, text in self._about().items()}
        changed = {name for name, value in figures.items() if self._told.get(name) != value}
        starts, ends = _ALWAYS
        if idle and words == self._words and all(n.startswith(starts) or n.endswith(ends) for n in changed):
            return None
        base = _with(Report(self._node, self._role, "", round(time.time(), 1)), **words)
        if _size(base) > _REPORT - 2 * _ENTRY:  # JSON writes other letters as six or twelve
            plain = {key: text.encode("ascii", "replace").decode() for key, text in words.items()}
            base = _with(base, **plain)
        chosen = self._chosen(figures, changed, _REPORT - _size(base))
        for name in chosen:
            self._told.pop(name, None)
            self._told[name] = figures[name]
        for name in self._told.keys() - figures.keys():  # a gauge that is gone
            del self._told[name]
        self._words = words
        return _with(base, figures=chosen)

    def _chosen(self, figures: dict[str, float], changed: set[str], room: int) -> dict[str, float]:
        """As many as fit into `room` bytes: in most of it those that have changed, in the rest any, so that who comes late
        hears of each; both in turn, so there is room for one at least."""
        age = {name: number for number, name in enumerate(self._told)}
        turn = sorted(figures, key=lambda name: age.get(name, -1))
        chosen: dict[str, float] = {}
        used = 0
        for names, most in (
            ([name for name in turn if name in changed], min(3 * room // 4, room - _ENTRY)),
            (turn, room),
        ):
            for name in names:
                size = len(json.dumps({name: figures[name]}, separators=(",", ":"))) - 1  # a comma, and no braces
                if name not in chosen and used + size <= most and len(chosen) < _FIGURES:
                    chosen[name] = figures[name]
                    used += size
        return chosen


def _with(report: Report, **fields: Any) -> Report:
    return Report(**{**vars(report), **fields})


def _size(report: Report) -> int:
    return len(frame.pack(report))


def _figure(name: str, value: object) -> float | None:
    """`value` to 5 digits, or whole; None if it cannot be told."""
    if len(json.dumps(name)) > _NAME + 2 or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    if not math.isfinite(number):
        return None
    return number if number.is_integer() and abs(number) < 2**53 else float(f"{number:.5g}")


def fitting(node: str, role: Role, number: int, time: float, name: str, fields: Mapping[str, Any]) -> Event | None:
    """The event, with as much of `fields` as may be told: lists and tables whole, or their first few, or their lengths. None: it
    cannot be told."""
    for most in (_ITEMS, _FEW, 0):
        text = _TEXT if most else _SHORT
        told = {
            printable(key, _NAME): _cut(value, most, text) for key, value in list(fields.items())[:_FIELDS_OF_EVENT]
        }
        try:
            event = Event(node, role, number, time, printable(name, _NAME), told)
            if len(frame.pack(event)) <= _EVENT:
                return event
        except (ValidationError, TooLarge):
            continue
    return None


def _cut(value: Any, most: int, text: int) -> Any:
    """With `most` 0 single values only. `text`: characters."""
    if isinstance(value, list | dict):
        items = value.values() if isinstance(value, dict) else value
        if not most or any(isinstance(each, list | dict) for each in items):
            return f"{len(value)} of them"
        if isinstance(value, list):
            return [_cut(each, 0, text) for each in value[:most]]
        return {printable(key, _NAME): _cut(each, 0, text) for key, each in list(value.items())[:most]}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return printable(value, text) if isinstance(value, str) else value
