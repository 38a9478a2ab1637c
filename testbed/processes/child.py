"""Child processes that end with us, however we end: on `stop`, on a signal, on kill -9.

A shell stands between: it reads a pipe whose other end only we hold, and when that closes,
by us or by the system after our death, it ends the child. The terminal's Ctrl-C does not reach it.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

# Descriptor 3, because a shell gives a background job no standard input of its own.
_GUARD = """
exec 3<&0
"$@" 3<&- & child=$!
(cat <&3; kill $child) >/dev/null 2>&1 & guard=$!
wait $child; status=$?
kill $guard  # or it would some day end whoever got the child's number next
exit $status
"""


def serving_at(log: Path) -> str | None:
    """The address that `emo serve` or `emo watch` has printed to `log`, once it has."""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else ():
        if line.startswith(("serving ", "watching ")) and " at http" in line:
            return line.rsplit(" at ", 1)[1].strip()
    return None


class Child:
    def __init__(self, command: Sequence[str], log: Path, environ: Mapping[str, str] | None = None) -> None:
        """Start `command`; what it prints goes to `log`. Raises OSError."""
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "sh", *command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                env=environ,
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """Its exit status, 128 + N after signal N; None while it runs."""
        return self._process.poll()

    def ask(self) -> None:
        """Ask it to end (SIGTERM); `stop` waits for that."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def stop(self, patience_s: float) -> None:
        """It has ended on return: by itself within `patience_s` seconds, or by force."""
        self.ask()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            pass
        finally:  # a second Ctrl-C must not leave it behind
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
