"""Feeds a log from a thread of its own, so that one that is slow, away or full never holds up the observer.

Of each run only the newest picture waits: it holds all that the ones before it held. What fails is tried again. Counts:

    log.points.NAME   written to it: tensorboard, mlflow
    log.failed.NAME   times that it could not be written
    log.lost.NAME     runs that were given up for newer ones, while it could not be written
"""

import threading
from typing import Protocol

from cloud_app.watch.sinks.picture import Picture
from emo.journal import Journal

_RUNS = 8  # that wait
_FIRST_S, _MOST_S = 1.0, 30.0  # until it is tried again


class Log(Protocol):
    """`name`: for counts; `where`: for people."""

    name: str
    where: str

    def write(self, picture: Picture) -> int:
        """Log what it lacks of `picture`. Returns how many points these were. Raises OSError: another time, maybe."""
        ...

    def close(self) -> None: ...


class Feeder:
    def __init__(self, log: Log, journal: Journal, retry_s: float = _FIRST_S) -> None:
        self._log, self._journal, self._retry_s = log, journal, retry_s
        self._waiting: dict[str, Picture] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._feed, name=f"emo-{log.name}", daemon=True)
        self._thread.start()

    def put(self, picture: Picture) -> None:
        """Returns at once."""
        with self._changed:
            self._waiting.pop(picture.run, None)
            self._waiting[picture.run] = picture
            if len(self._waiting) > _RUNS:
                del self._waiting[next(iter(self._waiting))]
                self._journal.count(f"log.lost.{self._log.name}")
            self._changed.notify()

    def close(self, wait_s: float) -> bool:
        """Log what waits, within `wait_s`. Returns whether all of it was."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(wait_s)
        with self._changed:
            return not self._thread.is_alive() and not self._waiting

    def _feed(self) -> None:
        wait_s = self._retry_s
        while (picture := self._next()) is not None:
            last = self._closing
            try:
                points = self._log.write(picture)
            except OSError as error:
                why = error.strerror or error
                self._journal.problem(
                    f"log.failed.{self._log.name}", f"{self._log.where}: {why}; run {picture.run} is logged later"
                )
                with self._changed:
                    self._waiting.setdefault(picture.run, picture)
                    if last:
                        break
                    self._changed.wait_for(lambda: self._closing, wait_s)
                wait_s = min(_MOST_S, 2 * wait_s)
            else:
                wait_s = self._retry_s
                self._journal.count(f"log.points.{self._log.name}", points)
        self._log.close()

    def _next(self) -> Picture | None:
        """None: all is logged, and no more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            run = next(iter(self._waiting), None)
            return None if run is None else self._waiting.pop(run)
