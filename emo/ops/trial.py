"""A trial in a process of its own, since torch kills the process on some processors: both ends of it.

python -m cloud_app.ready FILE     reads and builds what the tier does before it connects; for `emo doctor`.
                                   The last line is {"ok": ..., "detail": ...}
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from emo.config import Section
from emo.config_file import load
from emo.errors import EmoError

T = TypeVar("T", bound=Section)


def main(kind: type[T], ready: Callable[[T], str]) -> None:
    """The child's end. `ready` returns what it has made, in words. What it raises, other than EmoError, is a traceback."""
    try:
        result = {"ok": True, "detail": ready(load(kind, Path(sys.argv[1])))}
    except EmoError as error:
        result = {"ok": False, "detail": str(error)}
    sys.stdout.write(f"\n{json.dumps(result)}\n")


class Ended(NamedTuple):
    """`signal`: the name of the one that killed the child, or empty. `last`: the last line on stderr."""

    status: int
    signal: str
    stdout: str
    last: str

    @property
    def lacks_instruction(self) -> bool:
        """Whether it died as of an instruction that this processor does not have."""
        return self.signal in {"SIGILL", "SIGBUS", "SIGSEGV"}


def run(arguments: Sequence[str | Path], seconds: float) -> Ended:
    """Run this interpreter with `arguments`. Raises OSError, or TimeoutExpired after `seconds`."""
    child = subprocess.run(  # noqa: S603 - this interpreter, our own modules
        [sys.executable, "-P", *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
    )
    name = signal.Signals(-child.returncode).name if child.returncode < 0 else ""
    return Ended(child.returncode, name, child.stdout, (child.stderr.strip().splitlines() or [""])[-1])
