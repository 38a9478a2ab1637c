"""TensorBoard's folder: event files DIR/RUN/events.out.tfevents.*, a file for each process that has written.

What is there already is read back first: so a run that is watched twice, or after a restart, has each point once. The
format is TensorBoard's own (its package writes and reads the records; neither torch nor TensorFlow is needed).
"""

import io
import os
import socket
import time
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from cloud_app.watch.sinks.picture import Picture
from emo import files
from emo.errors import ConfigError

_FILES = "events.out.tfevents."


class TensorBoard:
    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError when `folder` cannot be written."""
        self._folder, self.where = folder, f"TensorBoard's folder {folder}"
        self._run: _Run | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--tensorboard {folder}: cannot be written: {error.strerror}") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(f"--tensorboard {folder}: cannot be written; give a folder of your own")

    def write(self, picture: Picture) -> int:
        folder = self._folder / picture.run
        if self._run is None or self._run.folder != folder:
            self.close()
            self._run = _Run(folder)
        try:
            return self._run.write(picture)
        except OSError:
            self.close()  # its last record may be torn: read it again, and go on in another file
            raise

    def close(self) -> None:
        if self._run is not None:
            self._run.close()
            self._run = None


class _Run:
    """`_known`: name -> the last step that is written."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError, BlockingIOError where another process writes this run."""
        self.folder = folder
        folder.mkdir(exist_ok=True)
        try:
            self._lock = files.lock(folder / ".lock")
        except BlockingIOError as error:
            raise OSError("another emo watch writes this run there") from error
        self._file: BinaryIO | None = None
        self._known: dict[str, int] = {}
        for path in sorted(folder.glob(f"{_FILES}*")):
            for event in LegacyEventFileLoader(str(path)).Load():  # up to a torn record
                for value in event.summary.value:
                    self._known[value.tag] = max(event.step, self._known.get(value.tag, -1))

    def write(self, picture: Picture) -> int:
        new = [point for point in picture.points if point.step > self._known.get(point.name, -1)]
        new.sort(key=lambda point: (point.step, point.time))
        events = []
        if picture.settings and SESSION_START_INFO_TAG not in self._known:
            begun = min((point.time for point in picture.points), default=time.time())
            shown = hparams_pb(dict(picture.settings), trial_id=picture.run, start_time_secs=begun)
            events.append(Event(wall_time=begun, summary=shown))
        for (step, at), points in groupby(new, key=lambda point: (point.step, point.time)):
            values = [Summary.Value(tag=point.name, simple_value=point.value) for point in points]
            events.append(Event(wall_time=at, step=step, summary=Summary(value=values)))
        if events:
            self._append(events)
        self._known |= {point.name: point.step for point in new}
        self._known |= {SESSION_START_INFO_TAG: 0} if picture.settings else {}
        return len(new)

    def _append(self, events: list[Event]) -> None:
        data = io.BytesIO()
        records = RecordWriter(data)
        if self._file is None:
            self._file = self._next().open("xb", buffering=0)
            records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        for event in events:
            records.write(event.SerializeToString())
        rest = data.getbuffer()
        while rest:
            rest = rest[self._file.write(rest) :]  # a full disk may take a part before it refuses

    def _next(self) -> Path:
        """A file whose name comes after all others, as TensorBoard reads them."""
        times = [path.name.removeprefix(_FILES)[:10] for path in self.folder.glob(f"{_FILES}*")]
        after = max((int(text) + 1 for text in times if text.isdecimal()), default=0)
        return self.folder / f"{_FILES}{max(after, int(time.time())):010d}.{socket.gethostname()}.{os.getpid()}"

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        os.close(self._lock)
