"""Which version of each model answers, and how another takes its place.

Knows a repository and loaded models; knows no HTTP. A version answers only after its self-test; until then, and
where it fails, the one before goes on. What waits for the old version is still answered by it.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from cloud_app import selftest
from cloud_app.batching import Batcher, Limits
from cloud_app.protocol import Served
from cloud_app.repository import Repository
from cloud_app.request import Refused
from cloud_app.session import cpus
from cloud_app.stats import Stats
from emo.errors import ServeError

log = logging.getLogger("emo")


@dataclass(frozen=True)
class Slot:
    """One loaded version, with its queue."""

    served: Served
    batcher: Batcher
    stats: Stats


class Models:
    """`threads`: onnxruntime's, of all runs together (the container's processors when None). `start`, `refresh`, `load`
    and `unload` take seconds and want one thread at a time; the rest is quick."""

    def __init__(self, repository: Repository, limits: Limits, threads: int | None) -> None:
        self._repository = repository
        threads = threads or cpus()
        self._limits = replace(limits, runs=min(limits.runs, threads))
        self._threads = threads // self._limits.runs
        self._pool = ThreadPoolExecutor(self._limits.runs, "infer")  # of all models together
        self._slots: dict[str, Slot] = {}
        self._stats: dict[tuple[str, int], Stats] = {}
        self._failed: dict[tuple[str, int], str] = {}
        self._unloaded = set[str]()
        self.loads = 0
        self.load_failures = 0

    def start(self) -> None:
        """Loads every model. Raises ServeError: there is none, or one of which no version can be served."""
        for name in self._repository.names():
            current = self._repository.current(name)
            older = [each for each in reversed(self._repository.versions(name)) if each < current]
            if not any(self._take(name, version) for version in (current, *older)):
                raise ServeError(self._failed[name, current])
        if not self._slots:
            raise ServeError(
                f"{self._repository.root}: holds no model (NAME/VERSION/model.onnx); a run of `emo cloud` writes one there"
            )

    def refresh(self) -> None:
        """Takes up what is new in the repository. A version that failed is not tried again, a model that is gone from
        the folder answers on: a share that is away for a moment must not end the service."""
        for name in self._repository.names():
            if name in self._unloaded:
                continue
            try:
                version = self._repository.current(name)
            except ServeError as error:
                log.warning("%s", error)
                continue
            loaded = self._slots.get(name)
            if (name, version) not in self._failed and (
                loaded is None or loaded.served.signature.version != version
            ):
                self._take(name, version)

    def load(self, name: str) -> None:
        """The current version of `name`, also when it failed or was unloaded before. Raises ServeError."""
        version = self._repository.current(name)
        if not self._take(name, version):
            raise ServeError(self._failed[name, version])
        self._unloaded.discard(name)

    def unload(self, name: str) -> None:
        """Until it is loaded by name. Raises Refused (404) where it is not loaded."""
        self.find(name, None)
        del self._slots[name]
        self._unloaded.add(name)

    def _take(self, name: str, version: int) -> bool:
        self.loads += 1
        try:
            served = Served.load(self._repository, name, self._threads, version)
            selftest.check(served, self._repository.selftest(name, version))
        except ServeError as error:
            self.load_failures += 1
            self._failed[name, version] = str(error)
            loaded = self._slots.get(name)
            kept = f"version {loaded.served.signature.version} goes on" if loaded else "it is not served"
            log.warning("model %s version %d: %s; %s", name, version, error, kept)
            return False
        self._failed.pop((name, version), None)
        stats = self._stats.setdefault((name, version), Stats())
        self._slots[name] = Slot(served, Batcher(served.run, self._pool, self._limits, stats), stats)
        log.info("model %s version %d is served", name, version)
        return True

    def find(self, name: str, version: str | None) -> Slot:
        """Raises Refused (404) where that model, or that version of it, is not loaded."""
        slot = self._slots.get(name)
        if slot is None:
            raise Refused(404, f"no model {name[:80]!r} here; there are: {', '.join(self._slots) or 'none'}")
        loaded = slot.served.signature.version
        if version is not None and version != str(loaded):
            raise Refused(404, f"model {name!r}: version {version!r:.24} is not loaded, version {loaded} is")
        return slot

    def loaded(self) -> list[Slot]:
        return list(self._slots.values())

    def index(self, *, ready: bool) -> list[dict[str, Any]]:
        """Every version in the repository, as Triton's model repository extension lists them; `ready`: only those
        that answer. Raises ServeError where the folder cannot be read."""
        rows = []
        for name in sorted({*self._repository.names(), *self._slots}):
            loaded = self._slots.get(name)
            current = loaded.served.signature.version if loaded else 0
            for version in sorted({*self._repository.versions(name), *([current] if loaded else [])}):
                row = {"name": name, "version": str(version), "state": "READY", "reason": ""}
                if version != current:
                    why = self._failed.get(
                        (name, version), "unloaded" if name in self._unloaded else "not current"
                    )
                    row |= {"state": "UNAVAILABLE", "reason": why}
                rows.append(row)
        return [row for row in rows if row["state"] == "READY" or not ready]

    def stats(self) -> list[tuple[str, int, Stats]]:
        """Of every version that has answered, loaded or not: a counter never goes back."""
        return [(name, version, stats) for (name, version), stats in list(self._stats.items())]
