"""What a node tells observers of itself: its events as they happen, and in turn the figures of its journal.

A full or absent broker costs the node nothing: both kinds of message are droppable, and events are bounded. Counts:

    events.untold    more happened than may be told: 200 at once, 20 a second
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from emo.journal import Journal
from emo.logs import printable
from emo.throttle import Budget
from emo.wire import frame, topics
from emo.wire.messages import Event, Message, Report, Role

_BURST, _PER_S = 200, 20.0  # events
_AT_ONCE = 16  # events in one look, so that they do not fill the outbox
_IDLE_S = 60.0  # between two reports of a node whose figures do not change
_WORDS = {"run": 64, "edge": 64, "doing": 64, "trouble": 200, "intervals": 64}  # characters
_ENTRY = 3  # bytes of a figure beside its name and number: two quotes and a colon; the comma is in its size
_EVENT = topics.ROUTES[Event].limit - 1024
_REPORT = topics.ROUTES[Report].limit
_KEPT = 32  # of a list that is too long for an event


class Reporter:
    """`about`: run, edge, doing, trouble and intervals as Report has them, each of which may be left out; is called on the
    thread that calls `due`. `every_s`: between two reports, at least."""

    def __init__(
        self, node: str, role: Role, journal: Journal, about: Callable[[], Mapping[str, str]], every_s: float
    ) -> None:
        self._node, self._role, self._journal, self._about = node, role, journal, about
        self._every_s = every_s
        self._events: deque[dict[str, Any]] = deque()
        self._lock = threading.Lock()
        self._budget, self._number = Budget(_BURST, _PER_S), 0
        self._at = float("-inf")
        self._told: dict[str, float] = {}  # figure -> as told last; in the order in which they were told
        self._words: dict[str, str] = {}
        journal.listen(self._happened)

    def _happened(self, record: dict[str, Any]) -> None:
        with self._lock:
            fits = self._budget.takes((), time.monotonic())
            if fits:
                self._events.append(record)
        if not fits:
            self._journal.count("events.untold")

    def due(self, now: float, *, last: bool = False) -> Iterator[Message]:
        """What is to be told now. `last`: all that there is, since the node ends."""
        for _ in range(_BURST if last else _AT_ONCE):
            with self._lock:
                if not self._events:
                    break
                record = self._events.popleft()
            self._number += 1
            event = self._event(record)
            if event is not None:
                yield event
        if last or now - self._at >= self._every_s:
            report = self._report(idle=now - self._at < _IDLE_S and not last)
            if report is not None:
                self._at = now
                yield report

    def _event(self, record: dict[str, Any]) -> Event | None:
        fields = {name: value for name, value in record.items() if name not in {"time", "event"}}
        for shorten in (_whole, _short, _single):
            try:
                told = {name: shorten(value) for name, value in fields.items()}
                event = Event(self._node, self._role, self._number, record["time"], record["event"], told)
            except ValidationError:
                continue
            if len(frame.pack(event)) <= _EVENT:
                return event
        self._journal.count("events.untold")
        return None

    def _report(self, *, idle: bool) -> Report | None:
        """None where `idle` and nothing has changed."""
        snapshot = self._journal.snapshot()
        figures = {name: _rounded(value) for name, value in snapshot.items() if math.isfinite(value)}
        words = {key: printable(text, _WORDS[key]) for key, text in self._about().items()}
        changed = [name for name, value in figures.items() if self._told.get(name) != value]
        if idle and not changed and words == self._words:
            return None
        order = {name: number for number, name in enumerate(self._told)}  # those told longest ago come first
        names = sorted(figures, key=lambda name: (name not in changed, order.get(name, -1)))
        base = _with(Report(self._node, self._role, "", round(time.time(), 1)), **words)
        if len(frame.pack(base)) > _REPORT // 2 + 200:  # JSON writes other letters as six
            plain = {key: text.encode("ascii", "replace").decode() for key, text in words.items()}
            base = _with(base, **plain)
        chosen: dict[str, float] = {}
        room = _REPORT - len(frame.pack(base))
        for name in names[:64]:
            size = len(name) + len(repr(figures[name])) + _ENTRY + 1
            if size <= room:
                chosen[name], room = figures[name], room - size
        for name in chosen:
            self._told.pop(name, None)
            self._told[name] = figures[name]
        for name in self._told.keys() - figures.keys():  # a gauge that is gone
            del self._told[name]
        self._words = words
        return _with(base, figures=chosen)


def _with(report: Report, **fields: Any) -> Report:
    return Report(**{**vars(report), **fields})


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.5g}")


def _whole(value: Any) -> Any:
    return value


def _short(value: Any) -> Any:
    """A list or a table of the first few."""
    if isinstance(value, dict):
        return dict(list(value.items())[:_KEPT])
    return value[:_KEPT] if isinstance(value, list) else value


def _single(value: Any) -> Any:
    return f"{len(value)} of them" if isinstance(value, dict | list) else value
