"""What a dataset is: images, labels, class names, and how to normalise.

Knows arrays. Knows no file and no torch.
"""

from dataclasses import dataclass

import numpy as np

from emo.errors import DataError


@dataclass(frozen=True, eq=False)
class Dataset:
    """images: uint8 (N, C, H, W), or float32 (N, C, ...) for a user's own; labels: int64 (N,), class numbers.

    mean, std: float32 (C,), in the units of `images` (0..255 for uint8). They must be the same on every tier, so
    take constants rather than the statistics of what lies on one device. Raises DataError on anything else.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        _need(
            images.ndim >= 2 and len(images) > 0, f"images must be (N, C, ...) with N > 0, not {images.shape}"
        )
        _need(images.dtype in (np.uint8, np.float32), f"images must be uint8 or float32, not {images.dtype}")
        _need(images.dtype == np.uint8 or bool(np.isfinite(images).all()), "images hold NaN or infinity")
        _need(
            labels.dtype == np.int64 and labels.shape == images.shape[:1],
            f"labels must be int64 {images.shape[:1]}, not {labels.dtype} {labels.shape}",
        )
        low, high = int(labels.min()), int(labels.max())
        _need(
            low >= 0 and high < len(self.classes),
            f"labels run from {low} to {high}, there are {len(self.classes)} classes",
        )
        for name, value in (("mean", self.mean), ("std", self.std)):
            _need(
                value.dtype == np.float32 and value.shape == images.shape[1:2],
                f"{name} must be float32 {images.shape[1:2]}, one a channel, not {value.dtype} {value.shape}",
            )
            _need(bool(np.isfinite(value).all()), f"{name} is not finite: {value}")
        _need(bool((self.std > 0).all()), f"std must be above zero, found {self.std}")


def constant(*values: float) -> np.ndarray:
    """A mean or std, float32 (C,)."""
    return np.array(values, np.float32)


def _need(right: bool, wrong: str) -> None:
    if not right:
        raise DataError(f"dataset: {wrong}")
