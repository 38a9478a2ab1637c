"""Disks that can be filled: a small file system of its own for each tier, where we may mount one.

As root on Linux a folder is a tmpfs, and full means ENOSPC for whoever writes there. Elsewhere the process itself may write no
byte more to any file (RLIMIT_FSIZE, EFBIG).
"""

import contextlib
import ctypes
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

_SIZE_MIB = 48
_CLONE_NEWNS = 0x00020000


def may_mount() -> bool:
    """From here on mounts are this process's and its children's alone: nobody else sees them, and they go with us.
    False where that is not allowed, and then nothing has changed."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS) != 0:
        return False
    return _quiet("mount", "--make-rprivate", "/")


class Disk:
    """`folder` is made. `own`: it becomes a file system of its own, if it can; else `fill` needs the process."""

    def __init__(self, folder: Path, own: bool) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.own = own and _quiet("mount", "-t", "tmpfs", "-o", f"size={_SIZE_MIB}m", "tmpfs", str(folder))
        self._filler = folder / "filler"

    def fill(self, pid: int) -> None:
        """From now on nothing more can be written there, by process `pid` at least."""
        if not self.own:
            self._limit(pid, 0)
            return
        step = 1 << 20
        with self._filler.open("ab") as file, contextlib.suppress(OSError):
            while step:
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, step)
                except OSError:
                    step //= 16

    def free(self, pid: int) -> None:
        """There is room again. `pid`: 0 where that process is gone."""
        if not self.own:
            self._limit(pid, resource.RLIM_INFINITY)
        self._filler.unlink(missing_ok=True)

    def settle(self) -> None:
        """What lies there lies in an ordinary folder on return."""
        if self.own:
            kept = self.folder.with_name(self.folder.name + ".kept")
            shutil.copytree(self.folder, kept, symlinks=True)
            _quiet("umount", "-l", str(self.folder))
            self.folder.rmdir()
            kept.rename(self.folder)
            self.own = False

    def _limit(self, pid: int, size: int) -> None:
        if pid and hasattr(resource, "prlimit"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))


def _quiet(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603 - written above
