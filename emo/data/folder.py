"""Image folders: DIR/train/CLASS/* and DIR/test/CLASS/*, or DIR/CLASS/* with a seeded 80/20 split.

All images have one size: resizing is a choice of yours. What is an image, and how it is read: image.py.
Class numbers follow the subfolders' names, so every device needs all of them, empty where it has no such image.
"""

from pathlib import Path

import numpy as np

from emo.config import Data
from emo.data import image
from emo.data.dataset import Dataset, constant
from emo.data.partition import holdout
from emo.errors import DataError

SUFFIXES = {suffix for suffixes in image.FORMATS.values() for suffix in suffixes}
MAX_BYTES = 8 << 30


def load(spec: Data) -> tuple[Dataset, Dataset]:
    """(train, test), uint8 (N, C, H, W) in the order of their paths; normalised to -1..1.

    Raises DataError: no such folder, no classes, no images, or the image that differs from the first one.
    """
    root = spec.dir
    if root is None or not root.is_dir():
        raise DataError(
            f"data.dir: {root} is not a folder; expected one that holds train/ and test/, or classes"
        )
    train, test = root / "train", root / "test"
    if not train.is_dir() and not test.is_dir():
        classes = _classes(root)
        files, labels = _list(root, classes)
        images = _read(files)
        return _pair([(images[rows], labels[rows]) for rows in holdout(labels, spec.seed)], classes, root)
    for folder in (train, test):
        if not folder.is_dir():
            raise DataError(
                f"{folder}: is missing; expected train/ and test/, or one folder a class and neither"
            )
    classes = _classes(train)
    unknown = sorted(set(_classes(test, least=1)) - set(classes))
    if unknown:
        raise DataError(
            f"{test / unknown[0]}: {train} has no such class; make the folder there, even if empty"
        )
    (files, labels), (test_files, test_labels) = _list(train, classes), _list(test, classes)
    images = _read(files + test_files)
    parts = [(images[: len(files)], labels), (images[len(files) :], test_labels)]
    return _pair(parts, classes, root)


def _pair(
    parts: list[tuple[np.ndarray, np.ndarray]], classes: tuple[str, ...], root: Path
) -> tuple[Dataset, Dataset]:
    for name, (images, _) in zip(("train", "test"), parts, strict=True):
        if not len(images):
            raise DataError(f"{root}: the {name} part has no image")
    depth = parts[0][0].shape[1]
    # Constants, not statistics: a device sees its own images only, and all tiers must normalise alike.
    scale = constant(*[127.5] * depth)
    train, test = (Dataset(images, labels, classes, scale, scale) for images, labels in parts)
    return train, test


def _classes(folder: Path, least: int = 2) -> tuple[str, ...]:
    names = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if len(names) < least:
        raise DataError(f"{folder}: expected one subfolder a class, {least} at least; found {len(names)}")
    return names


def _list(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], np.ndarray]:
    files, labels = [], []
    for label, name in enumerate(classes):
        inside = folder / name
        found = sorted(p for p in inside.glob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        files += found
        labels += [label] * len(found)
    return files, np.array(labels, np.int64)


def _read(files: list[Path]) -> np.ndarray:
    """uint8 (N, C, H, W): C is 1 where all are grey, else 3."""
    images = np.empty((0, 1, 1, 1), np.uint8)
    for row, path in enumerate(files):
        try:
            pixels = image.read(path).pixels
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        if not row:
            if len(files) * pixels.size > MAX_BYTES:
                raise DataError(f"{path}: {len(files)} images of this size are over 8 GiB; make them smaller")
            images = np.empty((len(files), *pixels.shape), np.uint8)
        height, width = images.shape[2:]
        if pixels.shape[1:] != (height, width):
            raise DataError(
                f"{path}: is {pixels.shape[2]}x{pixels.shape[1]}, where the first image ({files[0]}) is "
                f"{width}x{height}; make all images one size"
            )
        if len(pixels) > images.shape[1]:
            images = np.repeat(images, len(pixels), axis=1)
        images[row] = pixels
    return images
