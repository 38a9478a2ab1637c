"""Datasets by name: digits, cifar10, cifar100, folder, or your own `package.module:function`.

Knows where each is read and what a reader must give. Knows no torch, no partition and no model but its input.
A built-in is found as a user's own is, so Pillow is imported only by the dataset that needs it.
"""

import threading
from dataclasses import replace
from functools import lru_cache

from emo import own
from emo.config import Data, Model
from emo.data.dataset import Dataset
from emo.data.partition import holdout
from emo.errors import DataError

__all__ = ["Dataset", "load", "must_fit"]

BUILT_IN = {
    "digits": "emo.data.digits:load",
    "cifar10": "emo.data.cifar:load_cifar10",
    "cifar100": "emo.data.cifar:load_cifar100",
    "folder": "emo.data.folder:load",
}

_lock = threading.Lock()


def load(spec: Data) -> tuple[Dataset, Dataset]:
    """(train, test). The same spec gives the same objects in a process, which many devices may share: do not write.
    With `spec.heldout` what the cloud keeps (cloud_app/heldout.py) is missing from train.

    Raises DataError: unknown name, missing or damaged file, or a user's function that gives something else.
    """
    with _lock:  # two devices of one process must not both read the archive
        return _load(spec)


def must_fit(dataset: Dataset, model: Model) -> None:
    """Raise DataError unless `model.input` and `model.classes` are those of `dataset`."""
    shape, classes = dataset.images.shape[1:], len(dataset.classes)
    if shape != model.input or classes != model.classes:
        raise DataError(
            f"the data has samples {shape} in {classes} classes, the model takes {model.input} in "
            f"{model.classes}: set model.input to {list(shape)} and model.classes to {classes}"
        )


@lru_cache(maxsize=4)
def _load(spec: Data) -> tuple[Dataset, Dataset]:
    train, test = _read(spec)
    if spec.heldout:
        rows, _ = holdout(train.labels, spec.seed, spec.heldout)
        train = replace(train, images=train.images[rows], labels=train.labels[rows])
    return train, test


def _read(spec: Data) -> tuple[Dataset, Dataset]:
    name = BUILT_IN.get(spec.name, spec.name)
    made = own.function(name, "data.name", BUILT_IN, DataError)(spec)
    if not isinstance(made, tuple) or [type(each) for each in made] != [Dataset, Dataset]:
        raise DataError(
            f"{name}: must return (train, test), two emo.data.Dataset; found a {type(made).__name__}"
        )
    train, test = made
    if train.images.shape[1:] != test.images.shape[1:] or train.classes != test.classes:
        raise DataError(f"{name}: train and test differ in the shape of a sample or in their classes")
    return train, test
