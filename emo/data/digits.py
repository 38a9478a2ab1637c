"""scikit-learn's handwritten digits: 1,797 real images of 8x8, in the package, so the demo needs no network.

Knows the scale and the split. Source: UCI ML hand-written digits, test part.
"""

import numpy as np
from sklearn.datasets import load_digits

from emo.config import Data
from emo.data.dataset import Dataset, constant
from emo.data.partition import holdout


def load(spec: Data) -> tuple[Dataset, Dataset]:
    """(train, test), uint8 (N, 1, 8, 8) scaled from 0..16 to 0..255; 80/20 in every class, by `spec.seed`."""
    digits = load_digits()
    images = np.rint(digits.images[:, None] * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    classes = tuple(str(name) for name in digits.target_names)
    train, test = (
        Dataset(images[rows], labels[rows], classes, constant(77.8), constant(95.9))
        for rows in holdout(labels, spec.seed)
    )
    return train, test
