"""Processes that others may kill, stop and start again at will.

There are two kinds: a tier, forked from a process that has imported everything (forked_tier.py), and a program of its own (the
broker).
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from testbed.chaos import forked_tier

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    [
        *("cloud_app.run", "cloud_app.watch.run", "device_app.run", "edge_app.run", "testbed.chaos.forked_tier"),
        # What these import only when they need it.
        *("torch._dynamo", "onnx", "onnxscript.rewriter"),
        *("torch.onnx._internal.exporter._core", "torch.onnx._internal.exporter._compat"),
    ]
)


class Process(ABC):
    """`wanted`: whether it should run now; who supervises starts it again then. `starts`: how often it was started."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        self.wanted, self.starts = False, 0
        self._running: ForkServerProcess | subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Nothing, where it runs."""
        if self.status() is None and self._running is not None:
            return
        self._running = self._start()
        self.wanted = True
        self.starts += 1

    @property
    def pid(self) -> int:
        """0 before the first start."""
        return 0 if self._running is None else self._running.pid or 0

    def status(self) -> int | None:
        """Of the last start: None while it runs, else its exit status, -N after signal N."""
        running = self._running
        if running is None:
            return None
        return running.poll() if isinstance(running, subprocess.Popen) else running.exitcode

    def alive(self) -> bool:
        return self._running is not None and self.status() is None

    def send(self, number: int) -> None:
        """A signal; nothing, where it does not run."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def stop(self, patience_s: float) -> bool:
        """It has ended on return; False where it did not within `patience_s` seconds and was killed."""
        self.wanted = False
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        in_order = self.wait(patience_s)
        self.send(signal.SIGKILL)
        self.wait(10)
        return in_order

    def wait(self, patience_s: float) -> bool:
        """True when it does not run any more."""
        until = time.monotonic() + patience_s
        while self.alive():
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    @abstractmethod
    def _start(self) -> "ForkServerProcess | subprocess.Popen[bytes]": ...


class Tier(Process):
    """`emo *args`. `clock`: a file whose eight bytes shift its wall clock."""

    def __init__(self, name: str, folder: Path, args: Sequence[str]) -> None:
        super().__init__(name, folder)
        self._args, self._clock = list(args), folder / f"{name}.clock"
        self.shift(0.0)

    def shift(self, seconds: float) -> None:
        """Its wall clock, from now on and in later starts."""
        with self._clock.open("r+b" if self._clock.exists() else "wb") as file:
            file.write(forked_tier.OFFSET.pack(seconds))

    def _start(self) -> ForkServerProcess:
        process = _forks.Process(
            target=forked_tier.run, args=(self._args, self.log, self._clock), name=self.name, daemon=True
        )
        process.start()
        return process


class Program(Process):
    def __init__(self, name: str, folder: Path, command: Sequence[str]) -> None:
        super().__init__(name, folder)
        self._command = list(command)

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as out:
            return subprocess.Popen(  # noqa: S603 - our own command
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=forked_tier.die_with_parent,  # noqa: PLW1509 - one call to the kernel
            )
