"""Handwritten digits: 1,797 real images of 8x8, in the package, so the demo needs no network.

The file has a line each: 64 pixels of 0..16, then the digit. Source: E. Alpaydin and
C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (CC BY 4.0), its test part,
as scikit-learn ships it: 150 MB that a device need not carry for it.
"""

import gzip
from importlib import resources

import numpy as np

from emo.config import Data
from emo.data.dataset import Dataset, constant
from emo.data.partition import holdout


def load(spec: Data) -> tuple[Dataset, Dataset]:
    """(train, test), uint8 (N, 1, 8, 8) scaled from 0..16 to 0..255; 80/20 in every class, by `spec.seed`."""
    text = gzip.decompress((resources.files("emo") / "data" / "digits.csv.gz").read_bytes()).decode()
    rows = np.loadtxt(text.splitlines(), delimiter=",")
    images = np.rint(rows[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = rows[:, -1].astype(np.int64)
    classes = tuple(str(digit) for digit in range(10))
    train, test = (
        Dataset(images[part], labels[part], classes, constant(77.8), constant(95.9))
        for part in holdout(labels, spec.seed)
    )
    return train, test
