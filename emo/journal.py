"""What a process tells of itself: counters, problems (logged once a minute), events (one JSON line each).

Knows a folder to write to, or none (tests, simulation). Threads may share one.

    state_dir/metrics.json   counters, replaced every few seconds and at the end
    state_dir/events.jsonl   what happened: round closed, run began, ...
"""

import json
import logging
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from emo.errors import ConfigError

log = logging.getLogger("emo")
_EVERY_S = 60.0


class Journal:
    def __init__(self, folder: Path | None = None) -> None:
        """Raises ConfigError when `folder` cannot be written."""
        self.counts: Counter[str] = Counter()
        self._said: dict[str, float] = {}
        self._lock = threading.Lock()
        self._folder = folder
        self._gauges: Callable[[], Mapping[str, int]] = dict
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "events.jsonl").touch()
            except OSError as error:
                raise ConfigError(f"state_dir {folder}: cannot be written: {error.strerror}") from error

    def count(self, name: str, amount: int = 1) -> None:
        with self._lock:
            self.counts[name] += amount

    def problem(self, name: str, text: str) -> None:
        """Count `name`, and log `text` unless the same name was logged within the last minute."""
        now = time.monotonic()
        with self._lock:
            self.counts[name] += 1
            total, last = self.counts[name], self._said.get(name)
            quiet = last is not None and now - last < _EVERY_S
            if not quiet:
                self._said[name] = now
        if not quiet:
            log.warning("%s%s", text, f" [{name}: {total} so far]" if total > 1 else "")

    def event(self, name: str, **fields: Any) -> None:
        if self._folder is None:
            return
        # A loss may be NaN, which is no JSON.
        fields = {
            key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in fields.items()
        }
        line = json.dumps({"time": round(time.time(), 3), "event": name, **fields}, default=float)
        try:
            with self._lock, (self._folder / "events.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            self.problem("events.unwritten", f"{self._folder}: events cannot be written: {error.strerror}")

    def watch(self, gauges: Callable[[], Mapping[str, int]]) -> None:
        """What `gauges` gives stands beside the counters in every snapshot."""
        self._gauges = gauges

    def snapshot(self) -> dict[str, int]:
        found = dict(self._gauges())
        with self._lock:
            return dict(sorted((found | self.counts).items()))

    def write(self) -> None:
        """Replace metrics.json; a full disk must not stop a tier, so it is only logged."""
        if self._folder is None:
            return
        partial = self._folder / "metrics.json.part"
        try:
            partial.write_text(json.dumps(self.snapshot(), indent=1) + "\n", encoding="utf-8")
            os.replace(partial, self._folder / "metrics.json")  # noqa: PTH105 - Path.replace says the same, twice
        except OSError as error:
            self.problem("metrics.unwritten", f"{self._folder}: metrics cannot be written: {error.strerror}")
