"""What a dataset is: images, labels, class names, and how to normalise."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from emo.errors import DataError


@dataclass(frozen=True, eq=False)
class Dataset:
    """images: uint8 (N, C, H, W), or float32 (N, C, ...) for a user's own; labels: int64 (N,), class numbers.

    classes: a name each, printable and no two alike; of numbers and of arrays a tuple of str is made. mean, std: float32
    (C,), in the units of `images` (0..255 for uint8); one number is every channel's. They must be the same on every
    tier, so take constants rather than the statistics of what lies on one device. Raises DataError on anything else.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        for name, array in (("images", images), ("labels", labels)):
            _need(isinstance(array, np.ndarray), f"{name} must be a numpy array, not a {type(array).__name__}")
        _need(images.ndim >= 2 and len(images) > 0, f"images must be (N, C, ...) with N > 0, not {images.shape}")
        _need(images.dtype in (np.uint8, np.float32), f"images must be uint8 or float32, not {images.dtype}")
        _need(images.dtype == np.uint8 or bool(np.isfinite(images).all()), "images hold NaN or infinity")
        _need(
            labels.dtype == np.int64 and labels.shape == images.shape[:1],
            f"labels must be int64 {images.shape[:1]}, not {labels.dtype} {labels.shape}",
        )
        object.__setattr__(self, "classes", _names(self.classes))
        low, high = int(labels.min()), int(labels.max())
        _need(
            low >= 0 and high < len(self.classes),
            f"labels run from {low} to {high}, there are {len(self.classes)} classes",
        )
        for name in ("mean", "std"):
            value = _channels(name, getattr(self, name), images.shape[1])
            _need(bool(np.isfinite(value).all()), f"{name} is not finite: {value}")
            object.__setattr__(self, name, value)
        _need(bool((self.std > 0).all()), f"std must be above zero, found {self.std}")

    def of(self, rows: np.ndarray) -> "Dataset":
        """These `rows` of it, copied."""
        return replace(self, images=self.images[rows], labels=self.labels[rows])


def _names(classes: Any) -> tuple[str, ...]:
    try:
        items = list(classes)
    except TypeError:
        items = [None]
    _need(
        not isinstance(classes, str) and all(isinstance(name, str | int | np.integer) for name in items),
        f"classes must be the classes' names, a tuple of str, not {str(classes)[:80]!r}",
    )
    names = tuple(str(name) for name in items)
    for name in names:
        _need(
            name != "" and name.isprintable(),
            f"the class {name[:80]!r} needs a name that can be printed, on one line",
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    _need(not twice, f"two classes are named {twice[:1]}; give each a name of its own")
    return names


def _channels(name: str, value: Any, channels: int) -> np.ndarray:
    """float32 (C,) from that, from a list, or from one number for all."""
    try:
        values = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        values = np.empty(0, np.float32)
    if values.ndim == 0:
        values = np.full(channels, values)
    shape = getattr(value, "shape", None)
    description = f"{value!r}"[:80] if shape is None else f"{value.dtype} {shape}"
    _need(
        values.shape == (channels,),
        f"{name} must be float32 ({channels},), a number a channel, or one for all; not {description}",
    )
    return values


def constant(*values: float) -> np.ndarray:
    """A mean or std, float32 (C,)."""
    return np.array(values, np.float32)


def _need(right: bool, wrong: str) -> None:
    if not right:
        raise DataError(f"dataset: {wrong}")
