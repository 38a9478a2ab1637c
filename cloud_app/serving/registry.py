"""Loads models, and replaces a version by another while requests come in.

A version answers only after its self-test, in a process of its own:
a model may take any time and memory, or the process with it. Until then, and where it fails, the one before goes on.
What waits for the old version is still answered by it.
"""

import contextlib
import json
import logging
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

from cloud_app.serving import worker
from cloud_app.serving.batching import Batcher, Limits
from cloud_app.serving.infer_request import Refused
from cloud_app.serving.metrics import Stats
from cloud_app.serving.model import Served
from cloud_app.serving.onnx_session import RunOptions, cpus
from cloud_app.serving.repository import Repository
from emo.errors import ServeError

TEST_SECONDS = 60.0  # of processor; twice that by the clock
TEST_MEMORY = 4 << 30  # and eight times the file's size
_ANSWER = 64 << 10

log = logging.getLogger("emo")


@dataclass(frozen=True)
class Slot:
    """One loaded version, with its queue, and one of its own for requests that ask for members' answers, too: no run of others
    becomes longer or larger by them."""

    served: Served
    batcher: Batcher
    members: Batcher
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
        self._batchers = WeakSet[Batcher]()  # also of versions that are no longer found
        self._trial: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._logged_faults = ""
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
        the folder answers on: a share that is away for a moment must not end the service. What is wrong is logged once."""
        wrong = []
        try:
            for name in self._repository.names():
                try:
                    self._refresh(name)
                except ServeError as error:
                    wrong.append(str(error))
        except ServeError as error:
            wrong.append(str(error))
        faults = "; ".join(wrong)
        if faults and faults != self._logged_faults:
            log.warning("%s", faults)
        self._logged_faults = faults

    def _refresh(self, name: str) -> None:
        if name in self._unloaded:
            return
        version, loaded = self._repository.current(name), self._slots.get(name)
        is_new = loaded is None or loaded.served.signature.version != version
        if is_new and (name, version) not in self._failed:
            self._take(name, version)

    def close(self) -> None:
        """Ends what is under way: tests and runs. From any thread."""
        self._closed = True
        if self._trial is not None:
            self._trial.kill()
        for batcher in self._batchers:
            batcher.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

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
            served = Served.load(self._repository, name, version, self._threads, self._tested(name, version))
        except ServeError as error:
            self.load_failures += 1
            self._failed[name, version] = str(error)
            loaded = self._slots.get(name)
            kept = f"version {loaded.served.signature.version} goes on" if loaded else "it is not served"
            log.warning("model %s version %d: %s; %s", name, version, error, kept)
            return False
        self._failed.pop((name, version), None)
        stats = self._stats.setdefault((name, version), Stats())
        queue, members = (
            Batcher(run, self._pool, self._limits, stats, RunOptions) for run in (served.run, served.run_all)
        )
        self._batchers.update((queue, members))
        self._slots[name] = Slot(served, queue, members, stats)
        log.info("model %s version %d is served", name, version)
        return True

    def _tested(self, name: str, version: int) -> str:
        """The digest of a model that has passed its self-test. Raises ServeError."""
        try:
            output = self._try(name, version, self._repository.path(name, version).stat().st_size)
        except OSError as error:
            raise ServeError(f"its self-test cannot be started: {error}") from error
        try:
            answer = json.loads(output[worker.LENGTHS.size :])
        except ValueError as error:
            raise ServeError(
                f"its self-test takes over {TEST_SECONDS:g} s, or more memory than there is for it, or ends its process"
            ) from error
        if "error" in answer:
            raise ServeError(answer["error"])
        return str(answer["digest"])

    def _try(self, name: str, version: int, size: int) -> bytes:
        """What the child says of it; nothing where it had to be ended. `size`: of the file."""
        root = str(self._repository.root.resolve())
        job = {"work": "version", "root": root, "name": name, "version": version, "seconds": TEST_SECONDS}
        with subprocess.Popen(  # noqa: S603 - our own
            worker.command(TEST_MEMORY + 8 * size),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=worker.environment(),
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            self._trial = child
            timer = threading.Timer(2 * TEST_SECONDS, child.kill)
            timer.start()
            try:
                with contextlib.suppress(BrokenPipeError):
                    child.stdin.write(worker.frame(job, 0))
                    child.stdin.close()
                return b"" if self._closed else child.stdout.read(_ANSWER)
            finally:
                timer.cancel()
                child.kill()
                self._trial = None

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
                    why = self._failed.get((name, version), "unloaded" if name in self._unloaded else "not current")
                    row |= {"state": "UNAVAILABLE", "reason": why}
                rows.append(row)
        return [row for row in rows if row["state"] == "READY" or not ready]

    def stats(self) -> list[tuple[str, int, Stats]]:
        """Of every version that has answered, loaded or not: a counter never goes back."""
        return [(name, version, stats) for (name, version), stats in list(self._stats.items())]
