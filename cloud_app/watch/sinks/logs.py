"""All logs of one observer: each is given a picture of the run when it has changed."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cloud_app.serving.repository import Repository
from cloud_app.watch.run_state import RunProgress
from cloud_app.watch.sinks.feeder import Feeder, Log
from cloud_app.watch.sinks.picture import picture, seen
from cloud_app.watch.watcher import Watcher
from emo import files
from emo.errors import ServeError
from emo.journal import Journal
from emo.runtime.repeating import repeating

log = logging.getLogger("emo")
_EVERY_S = 5.0
_LAST_S = 10.0  # that a log gets for what is left at the end
_LIMIT = 1 << 20  # bytes of a result.json

Find = Callable[[RunProgress], Path | None]


@contextmanager
def feeding(
    logs: Sequence[Log], watcher: Watcher, journal: Journal, model: Find, every_s: float = _EVERY_S
) -> Iterator[None]:
    """While it is entered, `logs` are given what `watcher` knows, every `every_s` if it has changed, and at the end. `model`:
    the ONNX file of a run that is over, where it can be reached."""
    if not logs:
        yield
        return
    feeders = {log.where: Feeder(log, journal) for log in logs}
    last: tuple[object, ...] = ()

    def take() -> None:
        nonlocal last
        with watcher.view() as view:
            mark = view.version, view.progress.run, view.progress.phase
            if mark == last:
                return
            last, now, of = mark, watcher.clock(), seen(view)
        taken = picture(of, now, model(of.progress) if of.progress.result else None)
        if taken is not None:
            for feeder in feeders.values():
                feeder.put(taken)

    try:
        with repeating(take, every_s, "emo-logs"):
            yield
    finally:
        take()
        for where, feeder in feeders.items():
            if not feeder.close(_LAST_S):
                log.warning("%s: not all of the run is there; the same command logs the rest", where)


def in_repository(models: Path | None, name: str) -> Find:
    """The version that the cloud says it has exported, in the model repository `models`, where that is on this machine."""

    def find(progress: RunProgress) -> Path | None:
        version = progress.result.get("version")
        if models is None or version is None:
            return None
        try:
            return Repository(models).path(name, int(version))
        except ServeError:
            return None

    return find


def of_run(folder: Path) -> Find:
    """The file that `folder`, a cloud's state_dir, names in its result.json, where it is still on this machine."""

    def find(progress: RunProgress) -> Path | None:
        try:
            told = json.loads(files.read(folder / "result.json", _LIMIT))
        except (OSError, ValueError):
            return None
        path = told.get("onnx") if isinstance(told, dict) else None
        if not isinstance(path, str) or told.get("run") != progress.run:
            return None
        return Path(path) if path.endswith(".onnx") and Path(path).is_file() else None

    return find
