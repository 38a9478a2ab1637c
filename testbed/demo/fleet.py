"""The processes of the demo: started with nothing of ours in their environment, looked after, ended in order."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from emo.errors import EmoError
from testbed.processes.child import Child


class Interrupted(Exception):  # noqa: N818 - not an error
    pass


class Fleet:
    """The child processes; `check` raises when one has died, with the end of its log."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, Child] = {}
        self._without: dict[str, Callable[[str], None]] = {}

    def start(self, name: str, *args: str, without: Callable[[str], None] | None = None) -> None:
        """`without`: the rest can go on without it: if it ends, `check` tells this, once."""
        environ = {key: value for key, value in os.environ.items() if not key.startswith("EMO_")}
        environ |= {"OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
        self._running[name] = Child([sys.executable, "-m", "emo.cli", *args], self.log(name), environ)
        if without is not None:
            self._without[name] = without

    def log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def runs(self, name: str) -> bool:
        return name in self._running and self._running[name].poll() is None

    def check(self) -> None:
        for name, process in list(self._running.items()):
            status = process.poll()
            lines = [] if status is None else self.log(name).read_text(errors="replace").splitlines()[-15:]
            if name in self._without and status is not None:
                del self._running[name]
                self._without[name](f"{name} ended with {status}: {lines[-1] if lines else 'no word'}")
            elif status not in {None, 0}:
                raise EmoError("\n".join([f"{name} ended with {status}; its last lines:", *lines]))

    def stop(self, *names: str) -> None:
        chosen = [self._running.pop(name) for name in names or list(self._running) if name in self._running]
        for process in chosen:
            process.ask()
        for process in chosen:
            process.stop(patience_s=20)
