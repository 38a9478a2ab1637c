"""What a process tells of itself: counters, problems (logged once a minute), events (one JSON line each).

Knows a folder to write to, or none (tests, simulation). Threads may share one.

    state_dir/metrics.json   counters, replaced every few seconds and at the end
    state_dir/events.jsonl   what happened: round closed, run began, ...
    state_dir/events.1.jsonl what happened before, once that file has 64 MiB; older ones are given up

An event that the disk has no room for waits until there is: so a log has no gap and no half line where the disk was full
for a while. `events.lost` counts those that would not fit into memory either.
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
        self._said: dict[str, float] = {}
        self._lock = threading.Lock()
        self._waiting = deque[bytes]()  # lines of events
        self._folder = folder
        self._often, self._left_out = Budget(_OFTEN, 1 / _EVERY_S), Counter[tuple[str, str]]()
        self._gauges: list[Callable[[], Mapping[str, int]]] = []
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
        """Count `name`, and log `text`, made printable, unless the same name was logged within the last minute."""
        now = time.monotonic()
        with self._lock:
            self.counts[name] += 1
            total, last = self.counts[name], self._said.get(name)
            quiet = last is not None and now - last < _EVERY_S
            if not quiet:
                self._said[name] = now
        if not quiet:
            log.warning("%s%s", printable(text), f" [{name}: {total} so far]" if total > 1 else "")

    def event(self, name: str, by: str = "", /, **fields: Any) -> None:
        """Texts in it are made printable; of one that would be longer than 1 MiB only single values are kept.

        `by`: the node that may cause as many as it likes. Of these 50 are written, then one a minute; it says how many it
        stands for, as `left_out` (`events.left_out` counts them)."""
        if self._folder is None:
            return
        if by:
            with self._lock:
                if not self._often.takes((name, by), time.monotonic()):
                    self._left_out[name, by] += 1
                    self.counts["events.left_out"] += 1
                    return
                if before := self._left_out.pop((name, by), 0):
                    fields["left_out"] = before
        said = _sound({"time": round(time.time(), 3), "event": name, **fields})
        line = json.dumps(said)
        if len(line) > _LINE:
            line = json.dumps({k: v for k, v in said.items() if not isinstance(v, dict | list)})
        with self._lock:
            self._waiting.append(line.encode() + b"\n")
            if len(self._waiting) > _WAIT:
                self._waiting.popleft()
                self.counts["events.lost"] += 1
        error = self.catch_up()
        if error is not None:
            self.problem(
                "events.unwritten", f"{self._folder}: events cannot be written, they wait: {error.strerror}"
            )

    def catch_up(self) -> OSError | None:
        """Write the events that wait, if any do; what went wrong, when they still have to. To be called often."""
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

    def watch(self, gauges: Callable[[], Mapping[str, int]]) -> None:
        """What `gauges` gives stands beside the counters in every snapshot."""
        self._gauges.append(gauges)

    def snapshot(self) -> dict[str, int]:
        found = dict(gauge for gauges in self._gauges for gauge in gauges().items())
        with self._lock:
            return dict(sorted((found | self.counts).items()))

    def write(self) -> None:
        """Replace metrics.json; a full disk must not stop a tier, so it is only logged."""
        if self._folder is None:
            return
        self.catch_up()
        text = json.dumps(self.snapshot(), indent=1) + "\n"
        try:
            files.write(self._folder / "metrics.json", text.encode(), synced=False)
        except OSError as error:
            self.problem("metrics.unwritten", f"{self._folder}: metrics cannot be written: {error.strerror}")


def _sound(value: Any) -> Any:
    """`value` as JSON that neither its reader nor a terminal trips over; a loss may be NaN, which is no JSON."""
    if isinstance(value, str):
        return printable(value, _TEXT)
    if isinstance(value, Mapping):
        return {printable(key, _TEXT): _sound(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_sound(each) for each in value]
    if value is None or isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def _append(path: Path, data: bytes) -> int:
    """All of `data`, or none of it and an OSError. The file's size in bytes."""
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
