"""Image folders: layouts, what is refused, and pixels that arrive as they were."""

import os
import unicodedata

import numpy as np
import pytest
from PIL import Image, ImageOps

from emo.config import Data, Model
from emo.data import folder, image, registry
from emo.data.partition import holdout
from emo.errors import DataError, ImageTooLarge


def save(path, seed=0, mode="RGB", size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(path)
    return np.asarray(image)


def spec(root, **more):
    return Data(name="folder", dir=root, **more)


def load(root, seed=0):
    return folder.load(spec(root, seed=seed))


def refused(root, sentence, **how):
    with pytest.raises(DataError, match=sentence):
        folder.load(spec(root), **how)


@pytest.fixture
def said(caplog):
    """The one line about what was skipped."""

    def line():
        (record,) = [each.getMessage() for each in caplog.records if "skipped" in each.getMessage()]
        return record

    return line


def test_train_and_test_folders(tmp_path):
    first = save(tmp_path / "train" / "cat" / "1.png", seed=1)
    save(tmp_path / "train" / "cat" / "2.PNG", seed=2)
    save(tmp_path / "train" / "dog" / "a.jpg", seed=3)
    last = [save(tmp_path / "test" / name / "z.png", seed=4 + k) for k, name in enumerate(("dog", "cat"))]
    train, test = registry.load(spec(tmp_path))
    assert train.classes == test.classes == ("cat", "dog")
    assert train.images.shape == (3, 3, 4, 6)
    assert train.labels.tolist() == [0, 0, 1]
    assert test.labels.tolist() == [0, 1]
    assert np.array_equal(train.images[0].transpose(1, 2, 0), first)
    assert np.array_equal(test.images[1].transpose(1, 2, 0), last[0])


def plain(root, classes=("a", "b"), count=10, mode="L"):
    return {name: [save(root / name / f"{k}.png", seed=k, mode=mode) for k in range(count)] for name in classes}


def test_one_folder_a_class_is_split_by_seed(tmp_path):
    saved = [image for images in plain(tmp_path).values() for image in images]
    train, test = load(tmp_path)
    assert train.images.shape == (16, 1, 4, 6)
    assert test.labels.tolist() == [0, 0, 1, 1]
    for part, rows in zip((train, test), holdout(np.repeat([0, 1], 10), 0), strict=True):
        np.testing.assert_array_equal(part.images[:, 0], [saved[row] for row in rows])
    assert any(not np.array_equal(load(tmp_path, seed)[1].images, test.images) for seed in (1, 2, 3))


MODEL = Model(input=(1, 4, 6), classes=2)


def test_a_devices_own_class_folders_are_all_for_training(tmp_path):
    plain(tmp_path)
    whole = registry.training(spec(tmp_path), MODEL, own=True)
    assert len(whole.labels) == 20
    train, test = load(tmp_path)
    shared = registry.training(spec(tmp_path), MODEL, own=False)
    np.testing.assert_array_equal(shared.images, train.images)
    np.testing.assert_array_equal(registry.testing(spec(tmp_path), MODEL).images, test.images)
    # What the cloud holds back, it holds back of a dataset that is shared.
    assert len(registry.training(spec(tmp_path, heldout=0.25), MODEL, own=True).labels) == 12


@pytest.mark.parametrize("names", [("train", "test"), ("training", "testing"), ("Train", "TEST")])
def test_a_device_needs_train_only_and_a_cloud_test_only(tmp_path, names):
    device, cloud = tmp_path / "device", tmp_path / "cloud"
    plain(device / names[0], count=3)
    plain(cloud / names[1], count=2)
    assert len(registry.training(spec(device), MODEL, own=True).labels) == 6
    assert len(registry.testing(spec(cloud), MODEL).labels) == 4
    (device / "val").mkdir()
    for call, sentence in (
        (lambda: registry.testing(spec(device), MODEL), f"no test/ .* there is {names[0]}, val"),
        (lambda: registry.training(spec(cloud), MODEL, own=True), "no train/"),
        (lambda: registry.load(spec(device)), "no test/"),
    ):
        with pytest.raises(DataError, match=sentence):
            call()


def test_classes_called_train_and_test_are_classes(tmp_path):
    plain(tmp_path, ("bus", "test", "train"), 5)
    assert load(tmp_path)[0].classes == ("bus", "test", "train")


def test_a_device_may_lack_a_class_and_nobody_else(tmp_path):
    plain(tmp_path / "train", ("a", "b"), 3)
    plain(tmp_path / "test", ("a", "b"), 2)
    (tmp_path / "train" / "c").mkdir()
    (tmp_path / "train" / "c" / ".DS_Store").write_bytes(b"x")
    assert registry.training(spec(tmp_path), Model(input=(1, 4, 6), classes=3), own=True).classes == tuple("abc")
    refused(tmp_path, "train/c: holds no image; every class needs one")
    save(tmp_path / "train" / "c" / "1.png", mode="L")
    refused(tmp_path, "test/c: holds no image; every class needs one")
    plain(tmp_path / "few" / "x", count=1)
    refused(tmp_path / "few" / "x", "few/x/a: a fifth of a class")


@pytest.mark.parametrize("own", [False, True])
def test_a_class_whose_files_are_all_skipped_is_refused(tmp_path, own):
    plain(tmp_path, count=5)
    for path in (tmp_path / "b").iterdir():
        path.rename(path.with_suffix(".heic"))
    refused(tmp_path, r"/b: holds no image that can be read: 5 \.heic", part="train", own=own)


@pytest.mark.parametrize("kind", [suffix for each in image.FORMATS.values() for suffix in each])
def test_every_kind_of_image_is_read(tmp_path, kind):
    plain(tmp_path, count=4)
    kinds = {".jfif": "JPEG", ".mpo": "JPEG", ".pnm": "PPM"}
    for path in (tmp_path / "b").iterdir():
        Image.open(path).save(path.with_suffix(kind.upper()), kinds.get(kind))
        path.unlink()
    assert [len(part.labels) for part in load(tmp_path)] == [6, 2]


def test_what_systems_leave_behind_is_no_class_and_no_image(tmp_path, said):
    plain(tmp_path, count=5)
    for name in ("__MACOSX", "@eaDir", "lost+found", ".cache", "$RECYCLE.BIN"):
        save(tmp_path / name / "a" / "1.png")
    save(tmp_path / "a" / "@eaDir" / "0.png" / "SYNOFILE_THUMB_M.jpg")
    (tmp_path / "a" / "._0.png").write_bytes(b"x")
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"x")
    train, test = load(tmp_path)
    assert train.classes == ("a", "b")
    assert len(train.labels) + len(test.labels) == 10
    assert "skipped 8 hidden or a system's own" in said()


def test_images_of_nested_folders_are_read_and_what_is_none_is_counted_in_one_line(tmp_path, said):
    plain(tmp_path, count=4)
    deep = save(tmp_path / "a" / "2020" / "may" / "9.png", seed=9, mode="L")
    (tmp_path / "a" / "2020" / "notes.txt").write_text("no image")
    (tmp_path / "b" / "x.heic").write_bytes(b"x")
    (tmp_path / "b" / "y.HEIC").write_bytes(b"x")
    (tmp_path / "b" / "z").write_bytes(b"x")
    (tmp_path / "b" / "esc\x1b.\x1b[31m").write_bytes(b"x")
    (tmp_path / "b" / "gone.png").symlink_to("/nowhere.png")
    (tmp_path / "b" / "again").symlink_to(tmp_path)
    save(tmp_path / "loose.png")
    train, test = load(tmp_path)
    assert len(train.labels) + len(test.labels) == 9
    every = np.concatenate([train.images, test.images])
    assert any(np.array_equal(deep, each[0]) for each in every)
    line = said()
    assert "2 .heic" in line
    for once in (".txt", "without a suffix", "broken link", "link to a folder", "in no class's folder"):
        assert f"1 {once}" in line
    assert line.isprintable()


def test_beside_train_and_test_nothing_is_read_and_it_is_said(tmp_path, said):
    plain(tmp_path / "train", count=2)
    plain(tmp_path / "test", count=1)
    plain(tmp_path / "val", count=1)
    assert len(load(tmp_path)[0].labels) == 4
    assert "1 folder val/ beside train/ and test/" in said()


def test_class_names_are_the_same_however_their_letters_are_written(tmp_path):
    for form in ("NFC", "NFD"):
        plain(tmp_path / form, [unicodedata.normalize(form, name) for name in ("écu", "faz")], 3)
    assert load(tmp_path / "NFC")[0].classes == load(tmp_path / "NFD")[0].classes == ("faz", "écu")
    plain(tmp_path / "NFC", [unicodedata.normalize("NFD", "écu")], 3)
    refused(tmp_path / "NFC", "twice")


def test_folders_that_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"data\.dir: None"):
        load(None)
    refused(tmp_path / "no", "is not a folder")
    refused(tmp_path, "2 at least; found 0")
    (tmp_path / "train" / "a").mkdir(parents=True)
    refused(tmp_path, "has no test/")
    plain(tmp_path / "train")
    (tmp_path / "test" / "c").mkdir(parents=True)
    refused(tmp_path, "c: .*train has no such class")
    plain(tmp_path / "training")
    refused(tmp_path, "train/ and training/ are both the train part")
    plain(tmp_path / "latin", [os.fsdecode(b"caf\xe9"), "tea"])
    refused(tmp_path / "latin", "a name that is not UTF-8")


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    plain(tmp_path)
    (tmp_path / "b").chmod(0)
    if os.access(tmp_path / "b", os.R_OK):  # root may read all
        real = os.scandir

        def scandir(path):
            if str(path).endswith("/b"):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        monkeypatch.setattr(os, "scandir", scandir)
    refused(tmp_path, "/b: cannot be read: Permission denied")


@pytest.fixture
def root(tmp_path):
    for name in ("a", "b"):
        for k in range(5):
            save(tmp_path / name / f"{k}.png", seed=k)
    load(tmp_path)
    return tmp_path


def test_an_image_of_another_size_is_named(root):
    for k in range(9):
        save(root / "b" / f"x{k}.png", size=(6, 5))
    refused(root, r"(?s)9 of 19 images cannot.*b/x0.png: is 6x5, where the first image .*a/0.png.* is 6x4.*x2.png")


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
