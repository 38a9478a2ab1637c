"""Says every two seconds that a tier's process is alive, from a thread that does nothing else; `emo health` reads it.

    state_dir/heartbeat.json    Heartbeat

A node that is busy is not dead: what counts is that its main loop turns. Ages are measured by the clock that runs since
the machine was started, so setting the date changes nothing.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from emo import files
from emo.errors import ConfigError
from emo.runtime.repeating import repeating

NAME = "heartbeat.json"
PAUSE = "pause"  # beside it, in the cloud's state_dir: while that file is there, no round is opened
_EVERY_S = 2.0
_LIMIT = 64 << 10  # bytes


class Heartbeat(BaseModel):
    """`time`: Unix; `monotonic`: seconds since the machine's start, which is `boot`. `turned_s`: seconds since the main
    loop turned; without meaning while `doing` names something else, as the cloud's "exporting". `stopped`: it has
    ended in good order. `brokers`: link -> connected. `about`: what the node says of itself. `trouble`: why it takes no
    part as it should."""

    time: float
    monotonic: float
    boot: str
    pid: int
    tier: str
    id: str
    turned_s: float
    doing: str | None
    stopped: bool
    brokers: dict[str, bool]
    about: dict[str, Any]
    trouble: str = ""

    def age_s(self) -> float:
        """Infinite for a beat from before the machine's start."""
        return time.monotonic() - self.monotonic if self.boot == _boot() else float("inf")

    def wrong(self, max_age_s: float, connected: bool = False) -> str:
        """Why this node is not well; empty if it is. `connected`: a broker that is away counts, too."""
        away = [link for link, up in self.brokers.items() if not up]
        if self.stopped:
            return "stopped in good order"
        if self.age_s() > max_age_s:
            return f"no sign of life for {self.age_s():.0f} s: the process is gone, or stopped"
        if self.doing is None and self.turned_s > max_age_s:
            return f"its main loop has not turned for {self.turned_s:.0f} s"
        if self.trouble:
            return self.trouble
        return f"not connected to its broker: {', '.join(away)}" if connected and away else ""


class HeartbeatWriter:
    """Writes the heartbeat of one node, whose state is in `folder`. The callables must return at once, whatever the node is
    doing."""

    def __init__(
        self,
        folder: Path,
        tier: str,
        name: str,
        brokers: Callable[[], Mapping[str, bool]],
        about: Callable[[], Mapping[str, object]] = dict,
        trouble: Callable[[], str] = str,
    ) -> None:
        self._path, self._tier, self._name = folder / NAME, tier, name
        for path in folder.glob(".*.tmp"):  # left by a killed process
            files.remove(path)
        self._brokers, self._about, self._trouble = brokers, about, trouble
        self._turned = time.monotonic()
        self.doing: str | None = None

    def turned(self) -> None:
        """The main loop is alive."""
        self._turned = time.monotonic()

    def beat(self, stopped: bool = False) -> None:
        """A full disk must not stop a tier: then the file grows old, and health says so."""
        now = time.monotonic()
        state = Heartbeat(
            time=round(time.time(), 3),
            monotonic=round(now, 3),
            boot=_boot(),
            pid=os.getpid(),
            tier=self._tier,
            id=self._name,
            turned_s=round(now - self._turned, 3),
            doing=self.doing,
            stopped=stopped,
            brokers=dict(self._brokers()),
            about=dict(self._about()),
            trouble=self._trouble(),
        )
        with contextlib.suppress(OSError):
            files.write(self._path, state.model_dump_json().encode() + b"\n", synced=False)


@contextlib.contextmanager
def beating(hearts: Sequence[HeartbeatWriter]) -> Iterator[None]:
    """Write these heartbeats until the block ends."""

    def beat() -> None:
        for heart in hearts:
            heart.beat()

    try:
        with repeating(beat, _EVERY_S, "heartbeat"):
            yield
    finally:
        for heart in hearts:
            heart.beat(stopped=True)


def read(folder: Path) -> Heartbeat | None:
    """The last heartbeat of the node whose state is in `folder`, if there is one. Raises ConfigError if the file is none."""
    path = folder / NAME
    try:
        if not path.exists():
            return None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; run this as the node's user") from error
    return files.record(Heartbeat, files.whole(path, _LIMIT, ConfigError), str(path), ConfigError)


def _boot() -> str:
    """Names the machine's start; empty if the system does not."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""
