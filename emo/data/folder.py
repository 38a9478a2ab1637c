"""Image folders: DIR/train/CLASS/*.png|jpg and DIR/test/CLASS, or DIR/CLASS with a seeded 80/20 split.

Knows files and Pillow. All images have one size and one mode (8-bit grey or RGB): resizing is a choice of yours.
Class numbers follow the subfolders' names, so every device needs all of them, empty where it has no such image.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from emo.config import Data
from emo.data.dataset import Dataset, constant
from emo.data.partition import holdout
from emo.errors import DataError

SUFFIXES = {".png", ".jpg", ".jpeg"}
CHANNELS = {"L": 1, "RGB": 3}
MAX_PIXELS = 4096 * 4096
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
            raise DataError(f"{root}: the {name} part has no PNG or JPEG image")
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
    if not files:
        return np.empty((0, 1, 1, 1), np.uint8)
    with _opened(files[0]) as image:
        mode, size = image.mode, image.size
    width, height = size
    shape = (len(files), CHANNELS[mode], height, width)
    if math.prod(shape) > MAX_BYTES:
        raise DataError(
            f"{files[0]}: {len(files)} images of {width}x{height} are over 8 GiB; make them smaller"
        )
    images = np.empty(shape, np.uint8)
    for row, path in enumerate(files):
        with _opened(path) as image:
            if (image.mode, image.size) != (mode, size):
                raise DataError(
                    f"{path}: is {image.mode} {image.width}x{image.height}, where the first image ({files[0]}) is "
                    f"{mode} {width}x{height}; make all images one size and mode"
                )
            images[row] = np.asarray(image).reshape(height, width, -1).transpose(2, 0, 1)
    return images


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image with its header read and judged, its pixels not yet decoded."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{path}: {image.width}x{image.height} is over {MAX_PIXELS:,} pixels; make it smaller"
                )
            if image.mode not in CHANNELS:
                raise DataError(f"{path}: has mode {image.mode}; save it as 8-bit grey (L) or RGB")
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: is no readable PNG or JPEG: {error}") from error
