"""Runs what an unpacked image holds, as its compose file would have an engine run it, and without one.

Read-only root, the image's own user, environment, entry point and health check, no capability, no new privileges; only
/tmp, the folders given and the volumes that the image declares can be written. Knows Linux's namespaces, and the
configuration that buildah shows. Does not bound memory, and shares the machine's network unless `netns` names another.
Needs root.
"""

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Image:
    """`root`: where it is unpacked; `config`: Docker's, as in `buildah inspect`."""

    name: str
    root: Path
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """`mounts`: folder in the container -> (folder here, may it write there). `netns`: as in `ip netns`."""

    mounts: Mapping[str, tuple[Path, bool]] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    netns: str | None = None


def arguments(image: Image, place: Place, words: Sequence[str]) -> list[str]:
    """The command line that runs `words` in `image`."""
    root, uid = shlex.quote(str(image.root)), image.config["User"]
    steps = [
        f"mount --bind {root} {root}",
        f"mount -o remount,bind,ro {root}",
        f"mount -t proc proc {root}/proc",
        f"mount --rbind /dev {root}/dev",
        f"mount -t tmpfs -o size=1g,mode=1777 tmpfs {root}/tmp",
    ]
    volumes = sorted(set(image.config["Volumes"] or ()) - set(place.mounts))
    steps += [f"mount -t tmpfs -o size=64m,uid=10001,gid=10001 tmpfs {root}{volume}" for volume in volumes]
    for there, (here, writable) in sorted(place.mounts.items()):
        target = shlex.quote(f"{image.root}{there}")
        steps.append(f"mount --bind {shlex.quote(str(here.resolve()))} {target}")
        if not writable:
            steps.append(f"mount -o remount,bind,ro {target}")
    environ = [*image.config["Env"], *(f"{name}={value}" for name, value in place.environ.items())]
    last = ["setpriv", "--no-new-privs", "chroot", f"--userspec={uid}", "--groups=", str(image.root)]
    last += ["env", "-i", "-C", image.config["WorkingDir"], *environ, *words]
    script = " && ".join([*steps, "exec " + shlex.join(last)])
    inside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    network = [] if place.netns is None else ["ip", "netns", "exec", place.netns]
    return [*network, *inside, "sh", "-euc", script]


def command(image: Image, *words: str) -> list[str]:
    """As an engine makes it: the entry point with `words`, or with what the image says when there are none."""
    return [*image.config["Entrypoint"], *(words or image.config["Cmd"])]


def health(image: Image, place: Place) -> bool:
    """Does the image's own check pass? Where `place` is one in which its service runs."""
    kind, *words = image.config["Healthcheck"]["Test"]
    assert kind == "CMD", kind
    return subprocess.run(arguments(image, place, words), capture_output=True, check=False).returncode == 0


def run(image: Image, place: Place, words: Sequence[str], seconds: float) -> str:
    """What it prints. Raises subprocess.CalledProcessError, TimeoutExpired."""
    line = arguments(image, place, words)
    return subprocess.run(line, stdout=subprocess.PIPE, text=True, timeout=seconds, check=True).stdout


class Service:
    """What `image` runs by itself, until `stop`."""

    def __init__(self, image: Image, place: Place, log: Path) -> None:
        self.image, self.place, self.log = image, place, log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                arguments(image, place, command(image)), stdout=file, stderr=subprocess.STDOUT
            )

    def ended(self) -> int | None:
        return self._process.poll()

    def stop(self, seconds: float) -> int:
        """SIGTERM, as an engine does; the exit status, or -9 where it did not end in time."""
        # unshare itself ignores SIGTERM; its one child is the service.
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGTERM)
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return -9
