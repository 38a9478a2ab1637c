"""Datasets by name: digits, cifar10, cifar100, folder, or your own `package.module:function`.

A built-in is found as a user's own is, so Pillow is imported only by the dataset that needs it.
"""

import threading
from functools import lru_cache

from emo import user_function
from emo.config import Data, Model
from emo.data.dataset import Dataset
from emo.data.partition import holdout
from emo.errors import DataError

BUILT_IN = {
    "digits": "emo.data.digits:load",
    "cifar10": "emo.data.cifar:load_cifar10",
    "cifar100": "emo.data.cifar:load_cifar100",
    "folder": "emo.data.folder:load",
}

_lock = threading.RLock()  # a loader of your own may load others


def load(spec: Data) -> tuple[Dataset, Dataset]:
    """(train, test). The same spec gives the same objects in a process, which many devices may share: do not write.
    With `spec.heldout` what the cloud keeps (emo/data/heldout.py) is missing from train.

    Raises DataError: unknown name, missing or damaged file, or a user's function that gives something else.
    """
    train, test = _both(spec)
    return _needed(train, spec, "train"), _needed(test, spec, "test")


def training(spec: Data, model: Model, own: bool) -> Dataset:
    """The training set alone, for `model`: the test set need not lie here. `own`: it is one device's, not shared with others,
    so it may lack classes, and plain class folders are all for training. Raises as `load` and `must_fit`."""
    dataset = _needed(_both(spec, "train", own and not spec.heldout, model.input[0] == 3)[0], spec, "train")
    must_fit(dataset, model)
    return dataset


def testing(spec: Data, model: Model) -> Dataset:
    """The test set alone, for `model`. Raises as `load` and `must_fit`."""
    dataset = _needed(_both(spec, "test", False, model.input[0] == 3)[1], spec, "test")
    must_fit(dataset, model)
    return dataset


def must_fit(dataset: Dataset, model: Model) -> None:
    """Raise DataError unless `model.input` and `model.classes` are those of `dataset`."""
    shape, classes = dataset.images.shape[1:], len(dataset.classes)
    if shape != model.input or classes != model.classes:
        raise DataError(
            f"the data has samples {shape} in {classes} classes, the model takes {model.input} in "
            f"{model.classes}: set model.input to {list(shape)} and model.classes to {classes}"
        )


def _both(spec: Data, *wanted: object) -> tuple[Dataset | None, Dataset | None]:
    """`wanted`: further arguments of folder.load: of all others both parts come at once."""
    with _lock:  # two devices of one process must not both read the archive
        return _load(spec, *(wanted if spec.name == "folder" else ()))


@lru_cache(maxsize=4)
def _load(spec: Data, *wanted: object) -> tuple[Dataset | None, Dataset | None]:
    train, test = _read(spec, *wanted)
    if spec.heldout and train is not None:
        rows, _ = holdout(train.labels, spec.seed, spec.heldout)
        train = train.of(rows)
    return train, test


def _read(spec: Data, *wanted: object) -> tuple[Dataset | None, Dataset | None]:
    name = BUILT_IN.get(spec.name, spec.name)
    read = user_function.function(name, "data.name", BUILT_IN, DataError)
    try:
        made = read(spec, *wanted)
    except OSError as error:  # anything else is a bug, and keeps its traceback
        raise DataError(f"{name}: {error}") from error
    if (
        not isinstance(made, tuple)
        or len(made) != 2
        or not all(each is None or type(each) is Dataset for each in made)
        or made == (None, None)
    ):
        raise DataError(
            f"{name}: must return (train, test), two emo.data.Dataset, or None for one that is not here; "
            f"found a {type(made).__name__}"
        )
    train, test = made
    if train and test and (train.images.shape[1:] != test.images.shape[1:] or train.classes != test.classes):
        raise DataError(f"{name}: train and test differ in the shape of a sample or in their classes")
    return train, test


def _needed(part: Dataset | None, spec: Data, name: str) -> Dataset:
    if part is None:
        raise DataError(f"{spec.name}: gives no {name} set, which is needed here")
    return part
