"""Image folders: layouts, what is refused, and pixels that arrive as they were."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from emo import data
from emo.config import Data
from emo.data import folder, image
from emo.errors import DataError, ImageTooLarge


def save(path, seed=0, mode="RGB", size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(path)
    return np.asarray(image)


def load(root, seed=0):
    return folder.load(Data(name="folder", dir=root, seed=seed))


def refused(root, sentence):
    with pytest.raises(DataError, match=sentence):
        load(root)


def test_train_and_test_folders(tmp_path):
    first = save(tmp_path / "train" / "cat" / "1.png", seed=1)
    save(tmp_path / "train" / "cat" / "2.PNG", seed=2)
    save(tmp_path / "train" / "dog" / "a.jpg", seed=3)
    (tmp_path / "train" / "eel").mkdir()  # a class that this device has no image of
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    last = save(tmp_path / "test" / "eel" / "z.png", seed=4)
    train, test = data.load(Data(name="folder", dir=tmp_path))
    assert train.classes == test.classes == ("cat", "dog", "eel")
    assert train.images.shape == (3, 3, 4, 6)
    assert train.labels.tolist() == [0, 0, 1]
    assert test.labels.tolist() == [2]
    assert np.array_equal(train.images[0].transpose(1, 2, 0), first)
    assert np.array_equal(test.images[0].transpose(1, 2, 0), last)


def test_one_folder_a_class_is_split_by_seed(tmp_path):
    for name in ("a", "b"):
        for k in range(10):
            save(tmp_path / name / f"{k}.png", seed=k, mode="L")
    train, test = load(tmp_path)
    assert train.images.shape == (16, 1, 4, 6)
    assert test.labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(load(tmp_path)[1].images, test.images)
    assert any(not np.array_equal(load(tmp_path, seed)[1].images, test.images) for seed in (1, 2, 3))


def test_folders_that_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"data\.dir: None"):
        load(None)
    refused(tmp_path / "no", "is not a folder")
    refused(tmp_path, "2 at least; found 0")
    (tmp_path / "train" / "a").mkdir(parents=True)
    refused(tmp_path, "test: is missing")
    (tmp_path / "train" / "b").mkdir()
    (tmp_path / "test" / "c").mkdir(parents=True)
    refused(tmp_path, "c: .*train has no such class")
    (tmp_path / "train" / "c").mkdir()
    refused(tmp_path, "the train part has no image")
    save(tmp_path / "train" / "c" / "1.png")
    refused(tmp_path, "the test part has no image")


@pytest.fixture
def root(tmp_path):
    for name in ("a", "b"):
        for k in range(5):
            save(tmp_path / name / f"{k}.png", seed=k)
    load(tmp_path)
    return tmp_path


def test_an_image_of_another_size_is_named(root):
    save(root / "b" / "x.png", size=(6, 5))
    refused(root, r"b/x.png: is 6x5, where the first image .*a/0.png.* is 6x4")


def test_one_picture_of_colour_makes_all_of_them_colour(root):
    for path in root.glob("*/*.png"):
        save(path, mode="L")
    grey = load(root)[0].images
    assert grey.shape[1] == 1
    save(root / "b" / "4.png", seed=4)
    train, test = load(root)
    mixed = np.concatenate([train.images, test.images])
    assert mixed.shape[1] == 3
    assert sum(not (one == one[:1]).all() for one in mixed) == 1


def test_damaged_images_are_named(root):
    path = root / "b" / "x.png"
    for raw in (b"", b"GIF89a", (root / "b" / "0.png").read_bytes()[:-40]):
        path.write_bytes(raw)
        refused(root, "b/x.png: no PNG, JPEG.* image that can be read")
    Image.new("F", (6, 4)).save(path, format="TIFF")
    refused(root, "b/x.png: an image of mode F")


def test_a_decompression_bomb_is_refused_before_it_is_decoded(root, monkeypatch):
    Image.new("1", (8000, 8000)).save(root / "b" / "x.png")
    monkeypatch.setattr(ImageOps, "exif_transpose", lambda found, **_: pytest.fail(f"decoded {found.size}"))
    with pytest.raises(ImageTooLarge, match="8000x8000 pixels"):
        image.read(root / "b" / "x.png")
