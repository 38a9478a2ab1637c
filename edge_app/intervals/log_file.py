"""The controller's log on disk (paper, section IV-C), so that an edge that restarts goes on with it.

    CACHE.DIR/intervals     lines `CRC32 JSON`: first the run, then rows; of one batch the last row counts

A row is one unbuffered append, not synced: kill -9 loses none, a power cut the last few seconds'. A line that
is cut or damaged is left out and counted. Neither does harm: an edge that does not know an interval answers none,
and its device sends. The file is replaced as a whole when an edge starts and when most of it is history, so it can be read at
any moment.
"""

import json
import math
import time
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import TypeAdapter

from edge_app.intervals.controller import Row
from emo import files
from emo.config import ID
from emo.errors import CacheError
from emo.journal import Journal

Key = tuple[str, int]

NAME = "intervals"
_LINE = 512  # bytes of the longest line; ours stay below 300
_ROW = TypeAdapter(Row)
_HISTORY = 1000  # lines that no longer count, beyond one a row, before the file is written anew


class IntervalLog(AbstractContextManager["IntervalLog"]):
    """The table of the edge whose cache folder is `folder`, which exists and is that edge's alone.

    Raises nothing: an edge whose disk fails goes on without (`intervals.unwritten`), as does one whose
    file is damaged (`intervals.damaged`, in lines). One thread at a time.
    """

    def __init__(self, folder: Path, journal: Journal) -> None:
        self._path, self._journal = folder / NAME, journal
        self._head = b""
        self._lines: dict[Key, bytes] = {}
        self._file: FileIO | None = None
        self._written = 0

    def begin(self, run: str) -> list[Row]:
        """The rows of `run` that are there. What is of another run goes."""
        self._lines, rows = {}, []
        try:
            stored_run, stored, damaged = _load(self._path)
        except FileNotFoundError:
            stored_run, stored, damaged = "", [], 0
        except OSError as error:
            stored_run, stored, damaged = "", [], 1
            self._journal.problem("intervals.unreadable", f"{self._path}: {error.strerror}; starts empty")
        if damaged:
            self._journal.count("intervals.damaged", damaged)
        if stored_run == run:
            rows = [row for row, _ in stored]
            self._lines = {(row.device, row.batch): _row_line(row, at) for row, at in stored}
        self._head = _line({"run": run})
        self._rewrite()
        return rows

    def save(self, row: Row) -> None:
        """Note `row` as the newest of its batch, as of now."""
        line = _row_line(row, time.time())
        self._lines[row.device, row.batch] = line
        if self._file is None or self._written >= 2 * len(self._lines) + _HISTORY:
            self._rewrite()
            return
        try:
            whole = self._file.write(line) == len(line)
        except OSError:
            whole = False
        self._written += 1
        if not whole:  # a full disk may take a part of a line: nothing may be appended to that
            self._rewrite()

    def close(self) -> None:
        """Harmless twice."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rewrite(self) -> None:
        """Tried again with the next row where it fails."""
        self.close()
        try:
            files.write(self._path, b"".join((self._head, *self._lines.values())))
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            self._journal.problem("intervals.unwritten", f"{self._path}: cannot be written: {error.strerror}")
        self._written = len(self._lines)


def read(folder: Path) -> tuple[str, list[tuple[Row, float]]]:
    """The run, and each row with the time (Unix, seconds) at which its batch came, by device and batch.

    The edge may be running. Raises CacheError where there is no table, or none that can be read.
    """
    path = folder / NAME
    try:
        run, rows, _ = _load(path)
    except FileNotFoundError as error:
        raise CacheError(
            f"{path}: no table of intervals yet. An edge writes it when it joins a run: start it with "
            "`emo edge --config FILE`, from the same folder if cache.dir is relative."
        ) from error
    except OSError as error:
        raise CacheError(f"{path}: cannot be read: {error.strerror}; run this as the edge's user") from error
    if not run:
        raise CacheError(
            f"{path}: is damaged or not a table of intervals; the edge begins a new one when it is started"
        )
    return run, sorted(rows, key=lambda item: (item[0].device, item[0].batch))


def text(run: str, rows: list[tuple[Row, float]], cap: float, now: float) -> str:
    """The table for people. `cap`: the longest interval there can be; `now`: Unix time, seconds."""
    wide = max((len(row.device) for row, _ in rows), default=6)
    lines = [f"{'device':<{wide}} {'batch':>6} {'version':>8} {'score':>7} {'interval':>8} {'age':>8}"]
    for row, at in rows:
        score = "-" if math.isnan(row.score) else f"{row.score:.4f}"
        lines.append(
            f"{row.device:<{wide}} {row.batch:>6} {row.version:>8} {score:>7} {row.interval:>8.1f} {_age(now - at):>8}"
        )
    mean, capped = summary(rows, cap)
    lines.append(
        f"{len(rows)} batches of run {run}; mean interval {mean:.1f} attempts; {capped:.0%} at the cap of {cap:g}"
    )
    return "\n".join(lines)


def summary(rows: list[tuple[Row, float]], cap: float) -> tuple[float, float]:
    """(mean interval, share of rows at `cap`); zeros where there is no row."""
    intervals = [row.interval for row, _ in rows]
    count = max(len(intervals), 1)
    return sum(intervals) / count, sum(interval >= cap for interval in intervals) / count


def as_json(row: Row, at: float) -> dict[str, Any]:
    """A row as JSON has it, also in the file: a score of NaN is null, `time` is Unix time in seconds."""
    return {**asdict(row), "score": row.score if math.isfinite(row.score) else None, "time": round(at, 3)}


def _age(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _row_line(row: Row, at: float) -> bytes:
    return _line(as_json(row, at))


def _line(value: dict[str, Any]) -> bytes:
    return _checked(json.dumps(value).encode())


def _checked(data: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(data), data)


def _load(path: Path) -> tuple[str, list[tuple[Row, float]], int]:
    """(run, newest rows, lines left out); no run where the first line is not one. Raises OSError."""
    rows: dict[Key, tuple[Row, float]] = {}
    run, damaged = "", 0
    with path.open("rb") as file:
        for number, value in enumerate(_values(file)):
            if number == 0:
                run = str(value.get("run", "")) if value else ""
                if not ID.fullmatch(run):
                    return "", [], 1
                continue
            entry = _row(value) if value else None
            if entry is None:
                damaged += 1
            else:
                rows[entry[0].device, entry[0].batch] = entry
    return run, list(rows.values()), damaged


def _values(file: BinaryIO) -> Iterator[dict[str, Any] | None]:
    """What each line says; None for one that is not as it was written."""
    while line := file.readline(_LINE):
        data = line[9:-1]
        try:
            value = json.loads(data) if line == _checked(data) else None
        except ValueError:
            value = None
        yield value if isinstance(value, dict) else None


def _row(value: dict[str, Any]) -> tuple[Row, float] | None:
    """None unless it is what `as_json` gives."""
    try:
        at, score = float(value["time"]), value["score"]
        row = _ROW.validate_python({**value, "score": math.nan if score is None else score})
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return (row, at) if math.isfinite(at) else None
