"""Image folders: DIR/train/CLASS/... and DIR/test/CLASS/..., or DIR/CLASS/... with a seeded 80/20 split.

All images have one size: resizing is a choice of yours. What counts as an image: tree.py; how it is read: image.py. Class
numbers follow the folders' names, so every device needs all of them, empty where it has no such image.
"""

import logging
from collections import Counter
from pathlib import Path

import numpy as np

from emo.config import Data
from emo.data import image, tree
from emo.data.dataset import Dataset, constant
from emo.data.partition import holdout
from emo.data.tree import Listed, Part
from emo.errors import DataError, nearest

MAX_BYTES = 8 << 30
_NAMED = 3  # of many images that are wrong

log = logging.getLogger("emo")


def load(
    spec: Data, part: Part | None = None, own: bool = False, colour: bool = False
) -> tuple[Dataset | None, Dataset | None]:
    """(train, test), uint8 (N, C, H, W) in the order of their paths; normalised to -1..1.

    `part`: only this one is read, the other is None. `own`: the training set is one device's: it may lack classes, and of
    plain class folders it is all. `colour`: C is 3 in any case; else 1 where all images are grey. What is skipped is counted
    and logged in one line. Raises DataError: no such folder, a part or a class without images, images that cannot be
    read or differ in size from the first one.
    """
    root = spec.dir
    if root is None or not root.is_dir():
        raise DataError(f"data.dir: {root} is not a folder; expected one that holds train/ and test/, or classes")
    wanted: tuple[Part, ...] = ("train", "test") if part is None else (part,)
    skipped = Counter[str]()
    try:
        parts = tree.parts(root, skipped)
        if parts:
            names, listed = _parted(root, parts, wanted, own, skipped)
        else:
            names, listed = _plain(root, wanted, own, spec.seed, skipped)
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be read: {error.strerror}") from error
    if skipped:
        log.warning("%s: skipped %s", root, tree.summary(skipped))
    images = _read([file for each in listed.values() for file in each.files], root, colour)
    # Constants, not statistics: a device sees its own images only, and all tiers must normalise alike.
    scale = constant(*[127.5] * images.shape[1])
    made: dict[Part, Dataset] = {}
    for name, (files, labels) in listed.items():
        made[name] = Dataset(images[: len(files)], labels, names, scale, scale)
        images = images[len(files) :]
    return made.get("train"), made.get("test")


def _parted(
    root: Path, parts: dict[Part, Path], wanted: tuple[Part, ...], own: bool, skipped: Counter[str]
) -> tuple[tuple[str, ...], dict[Part, Listed]]:
    """The classes' names, and the images of each part that is wanted."""
    for part in wanted:
        if part not in parts:
            beside = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir()))
            raise DataError(f"{root}: has no {part}/ with classes in it, which is needed here; there is {beside}")
    folders = {part: tree.classes(folder, skipped) for part, folder in parts.items()}
    first: Part = "train" if "train" in parts else "test"
    names = _enough(folders[first], parts[first])
    for name, folder in folders.get("test", {}).items():
        if name not in names:
            raise DataError(
                f"{folder}: {parts[first]} has no such class; {nearest(name, names)} (upper and lower case count)"
            )
    return names, {part: tree.images(folders[part], names, parts[part], own, skipped) for part in wanted}


def _plain(
    root: Path, wanted: tuple[Part, ...], own: bool, seed: int, skipped: Counter[str]
) -> tuple[tuple[str, ...], dict[Part, Listed]]:
    """As `_parted`."""
    folders = tree.classes(root, skipped)
    names = _enough(folders, root)
    every = tree.images(folders, names, root, own, skipped)
    if own:
        return names, {"train": every}
    train, test = (every.of(rows) for rows in holdout(every.labels, seed))
    for label, name in enumerate(names if "test" in wanted else ()):
        if label not in test.labels:
            raise DataError(
                f"{root / name}: a fifth of a class is for the test, of this one no image; add some, or make train/ and test/"
            )
    return names, {part: {"train": train, "test": test}[part] for part in wanted}


def _enough(folders: dict[str, Path], where: Path) -> tuple[str, ...]:
    if len(folders) < 2:
        raise DataError(f"{where}: expected one subfolder a class, 2 at least; found {len(folders)}")
    return tuple(folders)


def _read(files: list[Path], root: Path, colour: bool) -> np.ndarray:
    """uint8 (N, C, H, W): C is 1 where all are grey, else 3."""
    if not files:
        raise DataError(f"{root}: holds no image")
    images, wrong = np.empty((0, 1, 1, 1), np.uint8), []
    for row, path in enumerate(files):
        try:
            pixels = image.read(path, 3 if colour else None).pixels
        except DataError as error:
            wrong.append(f"{path}: {error}")
            continue
        if not len(images):
            first = path
            if len(files) * pixels.size > MAX_BYTES:
                raise DataError(f"{path}: {len(files)} images of this size are over 8 GiB; make them smaller")
            images = np.empty((len(files), *pixels.shape), np.uint8)
        height, width = images.shape[2:]
        if pixels.shape[1:] != (height, width):
            size = f"{pixels.shape[2]}x{pixels.shape[1]}"
            wrong.append(f"{path}: is {size}, where the first image ({first}) is {width}x{height}")
            continue
        if len(pixels) > images.shape[1]:
            images = np.repeat(images, len(pixels), axis=1)
        images[row] = pixels
    if wrong:
        heading = f"{root}: {len(wrong)} of {len(files)} images cannot be used; mend or remove them:"
        raise DataError("\n".join([heading, *wrong[:_NAMED], *["..."] * (len(wrong) > _NAMED)]))
    return images
