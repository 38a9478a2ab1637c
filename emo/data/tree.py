"""Which files of a tree are images, and of which class: one folder a class, perhaps below train/ and test/. Opens no file."""

import os
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from emo.data.image import FORMATS
from emo.errors import DataError
from emo.logs import printable

Part = Literal["train", "test"]
_PARTS: dict[str, Part] = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SUFFIXES = {suffix for suffixes in FORMATS.values() for suffix in suffixes}
# What Macs, Windows, NAS boxes and file systems leave behind. Some of it is images: thumbnails.
_SYSTEM = {
    *("__macosx", "lost+found", "system volume information", "$recycle.bin", "thumbs.db", "desktop.ini"),
    *("@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@__thumb"),
}
_HIDDEN = "hidden or a system's own"


class Listed(NamedTuple):
    """Images in the order of their paths, and their class numbers."""

    files: list[Path]
    labels: np.ndarray

    def of(self, rows: np.ndarray) -> "Listed":
        return Listed([self.files[row] for row in rows], self.labels[rows])


def parts(root: Path, skipped: Counter[str]) -> dict[Part, Path]:
    """train/ and test/ (or training/, testing/) in it, where they hold folders: one that holds only images is a class of
    that name. Raises DataError where one part is there under two names."""
    by_part: dict[Part, Path] = {}
    beside = Counter[str]()
    for folder in _folders(root, beside):
        part = _PARTS.get(folder.name.casefold())
        if part is None or not _folders(folder, Counter()):
            beside[f"folder {printable(folder.name, 30)}/ beside train/ and test/"] += 1
        elif part in by_part:
            raise DataError(f"{root}: {by_part[part].name}/ and {folder.name}/ are both the {part} part; keep one")
        else:
            by_part[part] = folder
    if by_part:
        skipped.update(beside)
    return by_part


def classes(folder: Path, skipped: Counter[str]) -> dict[str, Path]:
    """The folders in it by name, sorted. Names are in Unicode's NFC: a Mac writes "é" in other bytes than Linux does.

    Raises DataError: two of one name, or a name that is not UTF-8."""
    by_name: dict[str, Path] = {}
    for path in _folders(folder, skipped):
        name = unicodedata.normalize("NFC", path.name)
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise DataError(f"{folder}: the class {path.name!a} has a name that is not UTF-8; rename it")
        if name in by_name:
            raise DataError(f"{folder}: has {name!r} twice, in other bytes of the same letters; join the two")
        by_name[name] = path
    return dict(sorted(by_name.items()))


def images(
    folders: Mapping[str, Path], names: tuple[str, ...], where: Path, lacks: bool, skipped: Counter[str]
) -> Listed:
    """All images below `folders`, at any depth. `names`: of all classes; `lacks`: there may be none of a class.

    Raises DataError: a class without one, or whose files are all skipped; OSError: a folder that cannot be read."""
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        passed = Counter[str]()
        of_class = _files(folders[name], passed) if name in folders else []
        if not of_class and passed.keys() - {_HIDDEN}:
            raise DataError(f"{folders[name]}: holds no image that can be read: {summary(passed)}; convert them")
        if not of_class and not lacks:
            raise DataError(
                f"{where / name}: holds no image; every class needs one, but in a device's own training set"
            )
        skipped.update(passed)
        files += of_class
        labels += [label] * len(of_class)
    return Listed(files, np.array(labels, np.int64))


def summary(skipped: Counter[str]) -> str:
    """For one line: how many for which reason, the most frequent ones."""
    most = [f"{count} {reason}" for reason, count in skipped.most_common(8)]
    rest = skipped.total() - sum(count for _, count in skipped.most_common(8))
    return ", ".join([*most, f"{rest} others"] if rest else most) + f" (images are {', '.join(FORMATS)})"


def _folders(folder: Path, skipped: Counter[str]) -> list[Path]:
    folders = []
    for path in sorted(folder.iterdir()):
        if _is_system(path.name):
            skipped[_HIDDEN] += 1
        elif path.is_dir():
            folders.append(path)
        elif path.suffix.lower() in _SUFFIXES:
            skipped["in no class's folder"] += 1
    return folders


def _files(folder: Path, skipped: Counter[str]) -> list[Path]:
    files = []
    for where, below, names in os.walk(folder, onerror=_raise):
        for name in list(below):
            if _is_system(name) or (Path(where) / name).is_symlink():
                skipped[_HIDDEN if _is_system(name) else "link to a folder"] += 1
                below.remove(name)
        for name in names:
            path = Path(where) / name
            suffix = path.suffix.lower()
            if _is_system(name):
                skipped[_HIDDEN] += 1
            elif suffix not in _SUFFIXES:
                skipped[printable(suffix, 30) or "without a suffix"] += 1
            elif not path.is_file():
                skipped["broken link, or no file"] += 1
            else:
                files.append(path)
    return sorted(files)


def _is_system(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _SYSTEM


def _raise(error: OSError) -> None:
    raise error
