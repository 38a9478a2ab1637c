"""Looks at the edges' caches from outside while they run: no batch may go back to an older version.

It reads the names of cached files, which carry their version, opens none of them, and holds no lock.
"""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path

_NAME = re.compile(r"(\d+)-(\d+)-[0-9a-f]{8}\.h5")


class CacheWatch:
    """`caches`: edge -> its cache.dir. `backwards`: a sentence for each step back that `look` saw."""

    def __init__(self, caches: Mapping[str, Path]) -> None:
        self._caches = dict(caches)
        self._newest: dict[tuple[str, str, int], int] = {}
        self.backwards: list[str] = []

    def look(self) -> None:
        for edge, folder in self._caches.items():
            for (device, batch), version in newest(folder).items():
                key = (edge, device, batch)
                before = self._newest.get(key, -1)
                if version < before:
                    self.backwards.append(f"{edge}: batch {batch} of {device} went from {before} to {version}")
                self._newest[key] = version


def newest(folder: Path) -> dict[tuple[str, int], int]:
    """(device, batch) -> its newest version among the files below `folder`, which may change meanwhile: what two looks in
    a row agree on, because one look may miss a file that is just being replaced."""
    first, second = _read(folder), _read(folder)
    return {key: version for key, version in second.items() if first.get(key) == version}


def _read(folder: Path) -> dict[tuple[str, int], int]:
    versions: dict[tuple[str, int], int] = {}
    with contextlib.suppress(OSError):  # folders may go too
        for path in folder.glob("batches/*/*/*.h5"):
            match = _NAME.fullmatch(path.name)
            if match:
                key = (path.parts[-3], int(match[1]))
                versions[key] = max(versions.get(key, -1), int(match[2]))
    return versions
