"""A process's counters, problems (logged once a minute) and events (one JSON line each). Threads may share a journal.

    state_dir/metrics.json    counters, replaced every few seconds and at the end
    state_dir/events.jsonl    what happened: round closed, run began, ...
    state_dir/events.1.jsonl  the events before, once that file has reached 64 MiB; older ones are deleted

While the disk is full, events wait in memory, so the log has no gap and no half line; `events.lost` counts those that did
not fit there either. Without a folder (tests, simulation) nothing is written.
"""

import contextlib
import json
import logging
import math
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from emo import files
from emo.errors import ConfigError
from emo.logs import printable
from emo.throttle import Budget

log = logging.getLogger("emo")
_EVERY_S = 60.0
_WAIT = 10_000  # events
_KEEP = 64 << 20  # bytes
_OFTEN = 50  # events of one name that one node may cause at once
_LINE, _TEXT = 1 << 20, 500  # characters of an event, and of a text in it


class Journal:
    def __init__(self, folder: Path | None = None) -> None:
        """Raises ConfigError when `folder` cannot be written."""
        self.counts: Counter[str] = Counter()
        self._logged_at: dict[str, float] = {}
        self._lock = threading.Lock()
        self._waiting = deque[bytes]()  # lines of events
        self._folder = folder
        self._often, self._left_out = Budget(_OFTEN, 1 / _EVERY_S), Counter[tuple[str, str]]()
        self._gauges: list[Callable[[], Mapping[str, float]]] = []
        self._broken: set[Callable[[], Mapping[str, float]]] = set()
        self._tell: Callable[[dict[str, Any]], None] | None = None
        if folder is not None:
            try:
                files.make_folder(folder)
                (folder / "events.jsonl").touch(mode=0o600)
            except OSError as error:
                raise ConfigError(f"state_dir {folder}: cannot be written: {error.strerror}") from error

    def count(self, name: str, amount: int = 1) -> None:
        with self._lock:
            self.counts[name] += amount

    def problem(self, name: str, text: str) -> None:
        """Count `name` and log `text`, printable, unless that name was logged within the last minute."""
        now = time.monotonic()
        with self._lock:
            self.counts[name] += 1
            total, last = self.counts[name], self._logged_at.get(name)
            quiet = last is not None and now - last < _EVERY_S
            if not quiet:
                self._logged_at[name] = now
        if not quiet:
            log.warning("%s%s", printable(text), f" [{name}: {total} so far]" if total > 1 else "")
            if self._tell is not None:
                self._tell(_record("problem", {"problem": name, "text": text, "count": total}))

    def event(self, name: str, by: str = "", /, **fields: Any) -> None:
        """Write an event, its texts made printable; of one longer than 1 MiB only single values are kept.

        `by`: a node that could cause any number of them. 50 of its events are written, then one a minute, whose `left_out`
        says how many were not (`events.left_out` counts them)."""
        if self._folder is None and self._tell is None:
            return
        if by:
            with self._lock:
                if not self._often.takes((name, by), time.monotonic()):
                    self._left_out[name, by] += 1
                    self.counts["events.left_out"] += 1
                    return
                if before := self._left_out.pop((name, by), 0):
                    fields["left_out"] = before
        record = _record(name, fields)
        if self._tell is not None:
            self._tell(record)
        if self._folder is None:
            return
        line = json.dumps(record)
        if len(line) > _LINE:
            line = json.dumps({k: v for k, v in record.items() if not isinstance(v, dict | list)})
        with self._lock:
            self._waiting.append(line.encode() + b"\n")
            if len(self._waiting) > _WAIT:
                self._waiting.popleft()
                self.counts["events.lost"] += 1
        error = self.catch_up()
        if error is not None:
            self.problem("events.unwritten", f"{self._folder}: events cannot be written, they wait: {error.strerror}")

    def catch_up(self) -> OSError | None:
        """Write the events that wait. Returns what went wrong, if they still wait. To be called often."""
        try:
            with self._lock:
                if self._waiting and self._folder is not None:
                    size = _append(path := self._folder / "events.jsonl", b"".join(self._waiting))
                    self._waiting.clear()
                    if size >= _KEEP:
                        path.replace(self._folder / "events.1.jsonl")
        except OSError as error:
            return error
        return None

    def watch(self, gauges: Callable[[], Mapping[str, float]]) -> None:
        """Add what `gauges` returns to every snapshot; what it raises is logged once, counted as `bugs`, and hurts nothing."""
        self._gauges.append(gauges)

    def listen(self, tell: Callable[[dict[str, Any]], None]) -> None:
        """Call `tell` with each event, and with each problem that is logged (event "problem"); from any thread, so it must
        return at once."""
        self._tell = tell

    def snapshot(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for gauges in self._gauges:
            try:
                values |= gauges()
            except Exception:
                self.count("bugs")
                if gauges not in self._broken:
                    self._broken.add(gauges)
                    log.exception("a gauge cannot be read; it is left out")
        with self._lock:
            return dict(sorted((values | self.counts).items()))

    def write(self) -> None:
        """Replace metrics.json. A failure is only logged: a full disk must not stop a tier."""
        if self._folder is None:
            return
        self.catch_up()
        text = json.dumps(self.snapshot(), indent=1) + "\n"
        try:
            files.write(self._folder / "metrics.json", text.encode(), synced=False)
        except OSError as error:
            self.problem("metrics.unwritten", f"{self._folder}: metrics cannot be written: {error.strerror}")


def _record(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    record: dict[str, Any] = _plain({"time": round(time.time(), 3), "event": name, **fields})
    return record


def _plain(value: Any) -> Any:
    """`value` as JSON that is safe to print. NaN, which a loss may be, is not JSON: null."""
    if isinstance(value, str):
        return printable(value, _TEXT)
    if isinstance(value, Mapping):
        return {printable(key, _TEXT): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def _append(path: Path, data: bytes) -> int:
    """Append all of `data`, or none of it and raise OSError. Returns the file's size in bytes."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size, rest = os.fstat(handle).st_size, memoryview(data)
        try:
            while rest:
                rest = rest[os.write(handle, rest) :]  # a full disk may take a part before it refuses
        except OSError:
            with contextlib.suppress(OSError):  # a device has no size
                os.ftruncate(handle, size)
            raise
        return size + len(data)
    finally:
        os.close(handle)
