"""A process that is `emo ARGS` for `emo chaos` in all but three things.

Its libraries were imported before it was forked (process.py), so that a restart takes a tenth of a second and not
five; its wall clock is `time.time` and an offset that others may write, eight bytes of a file; and it dies with the process that
started it.
"""

import ctypes
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import emo.cli

OFFSET = struct.Struct("<d")
_PR_SET_PDEATHSIG = 1
_FILES = 1024


def run(args: Sequence[str], log: Path, clock: Path) -> None:
    """`emo *args`, its output appended to `log`. `clock`: OFFSET.size bytes, seconds to add to the time. Exits."""
    os.setsid()  # the terminal's Ctrl-C is for who started us
    # Among what we have inherited is the end of a pipe that keeps the process alive which forked us: it is to die with
    # who started it, and we with it.
    os.closerange(3, _FILES)
    die_with_parent()
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(out)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    for name in [name for name in os.environ if name.startswith("EMO_")]:
        del os.environ[name]
    time.time = _shifted(clock)
    sys.exit(emo.cli.main(args))


def die_with_parent() -> None:
    """Linux sends SIGKILL when the thread that forked this process ends; elsewhere there is no such thing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _shifted(clock: Path) -> Callable[[], float]:
    real = time.time
    with clock.open("rb") as file:
        shared = mmap.mmap(file.fileno(), OFFSET.size, access=mmap.ACCESS_READ)
    return lambda: real() + float(OFFSET.unpack(shared[:])[0])
