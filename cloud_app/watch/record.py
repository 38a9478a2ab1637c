"""What an observer has seen, on the disk: the messages, as JSON lines, in two files that take turns.

    state_dir/watched.jsonl     the newest
    state_dir/watched.1.jsonl   those before, once that file has had half of the room

Read again, they give the view that there was: after a restart, and for `emo watch --run`. Nothing waits for the disk: lines are
written by `flush`, without a sync, and what does not fit is counted. Of a large fleet's reports and status not all are kept.
Counts:

    record.lost        lines that could not be written
    record.unwritten   times that the file could not be
    record.damaged     lines that could not be read
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cloud_app.watch.run_state import RunProgress, whole
from cloud_app.watch.view import View
from emo.errors import ConfigError
from emo.journal import Journal
from emo.wire.messages import Event, Message, Report, RunHistory, RunState, Status

NAME, BEFORE = "watched.jsonl", "watched.1.jsonl"
LINE = 256 << 10  # bytes of a line that is read; the largest message that is kept takes 128 KiB
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Status, Report, Event, RunState, RunHistory)}
SERVED = ("url", "name", "alive", "version", "requests", "latency_ms")  # what is kept of an endpoint's state
_WAIT = 32 << 20  # bytes that wait to be written
_REPORTS_S, _STATUS_S = 0.2, 0.06  # between two of a node, for each node that there is
_STATUS_MOST_S = 60.0  # an alive node is gone when it says nothing for longer than this
_FIGURES = 64  # of one report


class Record:
    """`most`: bytes of both files. Raises ConfigError where the folder cannot be written."""

    def __init__(self, folder: Path, most: int, journal: Journal) -> None:
        self._path, self._before, self._half = folder / NAME, folder / BEFORE, max(1 << 16, most // 2)
        self._journal = journal
        self._lines: list[bytes] = []
        self._size = 0  # of those
        self._kept: dict[str, tuple[Status, float]] = {}  # node -> its last status that was kept
        self._reported: dict[str, float] = {}
        self._rows: dict[int, tuple[Any, ...]] = {}  # of the last history that was kept
        self._rows_of: RunProgress | None = None
        self._torn = True  # the last line may be half of one
        try:
            self._path.touch(mode=0o600)
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be written: {error.strerror}") from error

    # -- what the view is told, and in its turn; returns at once

    def message(self, message: Message, now: float, view: View) -> None:
        """`view`: which has taken it."""
        if isinstance(message, Status):
            self._status(message, now, len(view.nodes))
        elif isinstance(message, Report):
            self._report(message, now, view)
        elif isinstance(message, RunHistory):
            self._history(message, now, view)
        elif isinstance(message, Event | RunState):
            if isinstance(message, Event) and message.name == "round":  # which may say something else of it
                self._rows.pop(whole(message.fields.get("round")) or 0, None)
            self._keep(now, message)

    def link(self, up: bool, now: float) -> None:
        self._add({"t": round(now, 3), "link": up})

    def served(self, endpoint: dict[str, Any], now: float) -> None:
        self._add({"t": round(now, 3), "served": endpoint})

    def _status(self, status: Status, now: float, nodes: int) -> None:
        status = dataclasses.replace(status, facts={})
        known = self._kept.get(status.node)
        if known is None or known[0] != status or abs(now - known[1]) >= min(_STATUS_MOST_S, _STATUS_S * nodes):
            self._kept[status.node] = status, now
            self._keep(now, status)
            while len(self._kept) > max(1000, 2 * nodes):
                del self._kept[next(iter(self._kept))]

    def _report(self, report: Report, now: float, view: View) -> None:
        node = view.nodes.get(report.node)
        if node is None:
            return
        last = self._reported.get(report.node, -math.inf)
        if abs(now - last) < _REPORTS_S * len(view.nodes) - 1:
            return
        self._reported[report.node] = now
        while len(self._reported) > 2 * len(view.nodes) + 1:
            del self._reported[next(iter(self._reported))]
        missed = {name: node.figures[name] for name, at in node.told.items() if last <= at < now}
        for part in _in_parts(report, {**missed, **report.figures}):
            self._keep(now, part)

    def _history(self, history: RunHistory, now: float, view: View) -> None:
        """Of the run that is shown its rows but those that are kept already."""
        if history.run != view.progress.run:
            self._keep(now, history)
            return
        if self._rows_of is not view.progress:
            self._rows_of, self._rows = view.progress, {}
        rows = {row[0]: row for row in history.rows}
        more = tuple(row for this, row in rows.items() if self._rows.get(this) != row)
        self._keep(now, dataclasses.replace(history, rows=more))
        self._rows = rows

    def _keep(self, now: float, message: Message) -> None:
        self._add({"t": round(now, 3), "kind": type(message).__name__, **vars(message)})

    def _add(self, line: dict[str, Any]) -> None:
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        if self._size + len(data) > _WAIT:
            self._journal.count("record.lost")
            return
        self._lines.append(data)
        self._size += len(data)

    # -- the disk

    def take(self) -> list[bytes]:
        """The lines that wait, to be given to `flush`."""
        lines, self._lines, self._size = self._lines, [], 0
        return lines

    def flush(self, lines: list[bytes]) -> bool:
        """Append `lines`. Returns whether the file is full: then `turn` is due."""
        if not lines:
            return False
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                data = memoryview((b"\n" if self._torn and os.fstat(handle).st_size else b"") + b"".join(lines))
                self._torn = True
                while data:
                    data = data[os.write(handle, data) :]
                self._torn = False
                return os.fstat(handle).st_size >= self._half
            finally:
                os.close(handle)
        except OSError as error:
            self._journal.count("record.lost", len(lines))
            self._journal.problem("record.unwritten", f"{self._path}: cannot be written: {error.strerror}")
            return False

    def turn(self, view: View, now: float) -> None:
        """Begin the file anew, with all that is known now, as far as half of it holds that."""
        try:
            self._path.replace(self._before)
        except OSError as error:
            self._journal.problem("record.unwritten", f"{self._before}: cannot be written: {error.strerror}")
            return
        waiting, self._lines, self._size = self._lines, [], 0
        self.link(view.connected, now)
        for message in restated(view):
            if self._size > self._half // 2:
                break
            self._keep(now, message)
        self._lines += waiting
        self._size = sum(map(len, self._lines))


def restated(view: View) -> Iterator[Message]:
    """Messages that say what `view` knows, but for the log and the curves over time."""
    progress = view.progress
    phase = {"training": "training", "finishing": "finishing", "exporting": "finishing", "done": "done"}
    if progress.run and progress.phase in phase:
        yield RunState(progress.run, progress.round, progress.rounds, phase[progress.phase])  # type: ignore[arg-type]
    rows = [row for _, row in sorted(progress.rows.items())][-1024:]
    if progress.run and (rows or progress.result):
        told = tuple((row[0], row[1], *(value or 0 for value in row[2:])) for row in rows)
        with contextlib.suppress(ValidationError):  # rows of an event's own making
            yield RunHistory(progress.run, progress.rounds, told, progress.result)  # type: ignore[arg-type]
    for node in list(view.nodes.values()):
        if node.online is not None:
            yield Status(node.id, node.tier, node.online, node.samples, trouble=node.unable)
        if node.reported is not None:
            about = node.run, node.reported, node.edge, node.doing, node.trouble
            yield from _in_parts(Report(node.id, node.tier, *about, intervals=node.intervals), node.figures)


def _in_parts(report: Report, figures: dict[str, float]) -> Iterator[Report]:
    """`report` with `figures`, as many times as it takes."""
    names = list(figures)
    for start in range(0, len(names) or 1, _FIGURES):
        yield dataclasses.replace(report, figures={name: figures[name] for name in names[start : start + _FIGURES]})


def replay(folder: Path, view: View, journal: Journal) -> float | None:
    """Tells `view` what the record in `folder` holds. Returns the time of its last line; None: there is none that can be read."""
    last = None
    for path in (folder / BEFORE, folder / NAME):
        damaged = 0
        for line in lines(path, LINE):
            now = _tell(view, line) if len(line) <= LINE else None
            damaged += now is None
            last = last if now is None else now
        if damaged:
            journal.count("record.damaged", damaged - 1)
            journal.problem("record.damaged", f"{path}: {damaged} lines cannot be read; they are left out")
    return last


def lines(path: Path, most: int) -> Iterator[bytes]:
    """The lines of a file, without empty ones; none where there is no such file. Of one that is too long `most` + 1 bytes. Raises
    ConfigError."""
    try:
        with path.open("rb") as file:
            while line := file.readline(most + 1):
                whole = line.endswith(b"\n")
                while len(line) > most and not whole:
                    rest = file.readline(most)
                    whole = not rest or rest.endswith(b"\n")
                if line := line.strip():
                    yield line
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _tell(view: View, line: bytes) -> float | None:
    """The line's time. None: it is none of ours."""
    try:
        fields = json.loads(line)
        now = fields.pop("t")
        if not isinstance(now, int | float) or not 0 <= now < 1e11:
            return None
        if "link" in fields:
            view.link(fields["link"] is True, now)
        elif "served" in fields:
            served = fields["served"]
            view.served({name: served[name] for name in SERVED if isinstance(served.get(name), str | int | float)}, now)
        else:
            view.take(_KINDS[fields.pop("kind")](**fields), now)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
        return None
    return float(now)
