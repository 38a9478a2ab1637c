"""Datasets by name: digits, a user's own, and what is refused."""

import numpy as np
import pytest

from emo.config import Data, Model
from emo.data import heldout, registry
from emo.data.dataset import Dataset
from emo.errors import DataError

CLASSES = ("a", "b")
ONE = np.ones(1, np.float32)


def made(n=4, **changes):
    fields = {
        "images": np.zeros((n, 1, 2, 2), np.uint8),
        "labels": np.arange(n) % 2,
        "classes": CLASSES,
        "mean": ONE,
        "std": ONE,
    }
    return Dataset(**(fields | changes))


def test_digits_are_real_split_and_seeded():
    train, test = registry.load(Data())
    assert train.images.shape == (1438, 1, 8, 8)
    assert test.images.shape == (359, 1, 8, 8)
    assert train.images.dtype == np.uint8
    assert train.images.max() == 255
    assert train.classes == tuple("0123456789")
    assert train.mean == pytest.approx(train.images.mean(), rel=0.01)
    assert train.std == pytest.approx(train.images.std(), rel=0.01)
    assert registry.load(Data())[0] is train
    assert not np.array_equal(registry.load(Data(seed=1))[0].images, train.images)
    together = np.concatenate([train.images, test.images]).reshape(1797, -1)
    other = np.concatenate([each.images for each in registry.load(Data(seed=1))]).reshape(1797, -1)
    assert np.array_equal(np.sort(together, axis=0), np.sort(other, axis=0))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"images": np.zeros((4, 1, 2, 2), np.float64)}, "uint8 or float32, not float64"),
        ({"images": np.full((4, 1, 2), np.nan, np.float32)}, "NaN or infinity"),
        ({"images": np.zeros(4, np.uint8)}, r"must be \(N, C"),
        ({"images": np.zeros((0, 1, 2, 2), np.uint8), "labels": np.zeros(0, np.int64)}, "N > 0"),
        ({"labels": np.zeros(3, np.int64)}, r"labels must be int64 \(4,\)"),
        ({"labels": np.zeros(4, np.int32)}, "not int32"),
        ({"labels": np.array([0, 1, 2, 0])}, "from 0 to 2, there are 2 classes"),
        ({"labels": np.array([0, 1, -1, 0])}, "from -1"),
        ({"mean": np.ones(3, np.float32)}, "mean must be"),
        ({"std": np.ones((1, 1))}, r"std must be float32 \(1,\).*not float64 \(1, 1\)"),
        ({"mean": "grey"}, "mean must be float32 .*not 'grey'"),
        ({"mean": None}, "mean is not finite"),
        ({"images": [[[[0]]]]}, "images must be a numpy array, not a list"),
        ({"labels": [0, 1, 0, 1]}, "labels must be a numpy array, not a list"),
        ({"classes": "ab"}, "must be the classes' names, .*not 'ab'"),
        ({"classes": 2}, "must be the classes' names, .*not '2'"),
        ({"classes": (b"a", b"b")}, "must be the classes' names"),
        ({"classes": ("a", "")}, "the class '' needs a name"),
        ({"classes": ("a", "b\n")}, "needs a name that can be printed"),
        ({"classes": ("a", "\udcff")}, "needs a name that can be printed"),
        ({"classes": ("a", "b", "a")}, r"two classes are named \['a'\]"),
        ({"classes": (1, "1")}, "two classes are named"),
        ({"std": 0 * ONE}, "above zero"),
        ({"mean": np.nan * ONE}, "not finite"),
    ],
)
def test_a_dataset_is_checked(changes, sentence):
    with pytest.raises(DataError, match=sentence):
        made(**changes)


@pytest.mark.parametrize("classes", [["0", "1"], np.array(["0", "1"]), np.arange(2), range(2), (0, "1")], ids=type)
@pytest.mark.parametrize("scale", [2, 2.0, [2.0], (2,), np.float64(2), np.ones(1) * 2], ids=type)
def test_names_and_scales_as_people_give_them(classes, scale):
    found = made(classes=classes, mean=scale, std=scale)
    assert found.classes == ("0", "1")
    assert all(type(name) is str for name in found.classes)
    for value in (found.mean, found.std):
        assert (value.dtype, value.shape, value[0]) == (np.float32, (1,), 2)


def test_any_rank_and_float32_are_welcome():
    made(images=np.zeros((4, 1), np.float32))
    made(images=np.zeros((4, 1, 2, 2, 2), np.float32))


def test_data_and_model_must_fit():
    registry.must_fit(made(), Model(input=(1, 2, 2), classes=2))
    with pytest.raises(DataError, match=r"set model.input to \[1, 2, 2\] and model.classes to 2"):
        registry.must_fit(made(), Model())


def own(spec):
    return made(), made(2)


def three(spec):
    return made(), made(), made()


def differ(spec):
    return made(), made(classes=("a", "c"))


def explode(spec):
    raise KeyError(spec.name)


def test_a_users_own_dataset_is_loaded_once():
    spec = Data(name=f"{__name__}:own")
    train, test = registry.load(spec)
    assert (len(train.labels), len(test.labels)) == (4, 2)
    assert registry.load(Data(name=f"{__name__}:own"))[0] is train


def half(spec):
    return made(), None


def nothing_at_all(spec):
    return None, None


def test_a_users_own_dataset_may_lack_the_part_that_a_node_does_not_need():
    spec, model = Data(name=f"{__name__}:half"), Model(input=(1, 2, 2), classes=2)
    assert len(registry.training(spec, model, own=True).labels) == 4
    for call in (lambda: registry.testing(spec, model), lambda: registry.load(spec)):
        with pytest.raises(DataError, match="half: gives no test set"):
            call()
    with pytest.raises(DataError, match=r"set model\.input"):
        registry.training(spec, Model(), own=True)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("digit", "data.name: unknown name 'digit'; did you mean 'digits'"),
        ("imagenet21k", "known here: cifar10, cifar100, digits, folder"),
        ("nowhere.at.all:load", "does not import"),
        (f"{__name__}:nothing", "no function 'nothing'"),
        (f"{__name__}:three", "must return"),
        (f"{__name__}:nothing_at_all", "must return"),
        (f"{__name__}:differ", "train and test differ"),
    ],
)
def test_names_and_functions_that_are_refused(name, sentence):
    with pytest.raises(DataError, match=sentence):
        registry.load(Data(name=name))


def lost(spec):
    return np.load("/nowhere/train.npz")


def test_a_file_that_a_users_own_dataset_lacks():
    with pytest.raises(DataError, match=r"test_data:lost: .*No such file.*/nowhere/train\.npz"):
        registry.load(Data(name=f"{__name__}:lost"))


def test_a_users_own_bug_keeps_its_traceback():
    with pytest.raises(KeyError):
        registry.load(Data(name=f"{__name__}:explode"))


def test_what_the_cloud_keeps_is_missing_from_training_and_nothing_else():
    train, test = registry.load(Data())
    rest, same = registry.load(Data(heldout=0.2))
    kept = heldout.kept(Data(heldout=0.2), Model())
    assert len(rest.labels) + len(kept.labels) == len(train.labels)
    both = [image.tobytes() for part in (rest, kept) for image in part.images]
    assert sorted(both) == sorted(image.tobytes() for image in train.images)
    np.testing.assert_array_equal(same.images, test.images)
    assert registry.load(Data(heldout=0.2))[0] is rest
