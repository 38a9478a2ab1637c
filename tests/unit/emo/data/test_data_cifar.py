"""CIFAR's binary files: layout, sizes, labels, archives that lie."""

import dataclasses
import gzip
import io
import tarfile

import numpy as np
import pytest

from emo.config import Data
from emo.data import archive as archives
from emo.data import cifar, registry
from emo.errors import DataError

SMALL10 = dataclasses.replace(cifar.CIFAR10, files={n: (p, 4) for n, (p, _) in cifar.CIFAR10.files.items()})
SMALL100 = dataclasses.replace(cifar.CIFAR100, files={"train.bin": ("train", 6), "test.bin": ("test", 3)})
LAYOUTS = pytest.mark.parametrize("layout", [SMALL10, SMALL100], ids=lambda layout: layout.name)


def contents(layout, seed=0):
    """file -> records (n, record) uint8, of random pixels and labels."""
    random = np.random.default_rng(seed)
    files = {}
    for name, (_, records) in layout.files.items():
        files[name] = random.integers(0, 256, (records, layout.record), dtype=np.uint8)
        for byte, values in enumerate(layout.labels):
            files[name][:, byte] = random.integers(0, values, records)
    return files


def unpack(folder, files):
    folder.mkdir(parents=True)
    for name, records in files.items():
        records.tofile(folder / name)


def pack(path, layout, files, extra=()):
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo(layout.folder)
        entry.type = tarfile.DIRTYPE
        tar.addfile(entry)
        for name, records in [*extra, *reversed(files.items())]:  # the official order is none, too
            raw = bytes(records)
            entry = tarfile.TarInfo(f"{layout.folder}/{name}")
            entry.size = len(raw)
            tar.addfile(entry, io.BytesIO(raw))


def check(layout, files, train, test):
    for part, dataset in (("train", train), ("test", test)):
        records = np.concatenate([files[n] for n, (p, _) in layout.files.items() if p == part])
        assert np.array_equal(dataset.images.reshape(len(records), -1), records[:, len(layout.labels) :])
        assert np.array_equal(dataset.labels, records[:, len(layout.labels) - 1])
        assert dataset.images.shape[1:] == (3, 32, 32)
        assert len(dataset.classes) == layout.labels[-1]


@LAYOUTS
def test_folder_its_parent_and_archive_give_the_same_samples(layout, tmp_path):
    files = contents(layout)
    unpack(tmp_path / "a" / layout.folder, files)
    (tmp_path / "b").mkdir()
    pack(tmp_path / "b" / layout.archive, layout, files, extra=[("readme.html", b"hello" * 200)])
    for root in (tmp_path / "a", tmp_path / "a" / layout.folder, tmp_path / "b"):
        check(layout, files, *cifar.read(layout, root))
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [layout.archive]


def test_official_sizes(tmp_path):
    for layout, expected in (
        (cifar.CIFAR10, [30_730_000] * 6),
        (cifar.CIFAR100, [153_700_000, 30_740_000]),
    ):
        assert [layout.size(file) for file in layout.files] == expected
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for file in cifar.CIFAR10.files:
        with (folder / file).open("wb") as stream:
            stream.truncate(30_730_000)  # sparse: no disk, all zero
    train, test = registry.load(Data(name="cifar10", dir=tmp_path))
    assert train.images.shape == (50_000, 3, 32, 32)
    assert test.images.shape == (10_000, 3, 32, 32)
    registry._load.cache_clear()  # 180 MB that no other test wants


def refused(layout, root, *words):
    with pytest.raises(DataError) as error:
        cifar.read(layout, root)
    for word in words:
        assert word in str(error.value)


def test_nothing_there(tmp_path):
    refused(SMALL10, None, "data.dir", "cifar-10-binary.tar.gz")
    refused(SMALL10, tmp_path / "no", "is not a folder")
    refused(SMALL100, tmp_path, "found neither cifar-100-binary.tar.gz nor cifar-100-binary/", "download https://")


@LAYOUTS
def test_the_python_version_is_refused_with_the_right_download(layout, tmp_path):
    archive, folder = layout.python
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / archive).write_bytes(b"\x80\x04")
    (tmp_path / "b" / folder).mkdir(parents=True)
    for root in (tmp_path / "a", tmp_path / "b", tmp_path / "b" / folder):
        refused(layout, root, "python version", "pickle", f"kriz/{layout.archive}")


@LAYOUTS
def test_folder_with_a_cut_or_missing_file(layout, tmp_path):
    files = contents(layout)
    unpack(tmp_path / layout.folder, files)
    name = next(iter(layout.files))
    path = tmp_path / layout.folder / name
    path.write_bytes(path.read_bytes()[:-1])
    refused(layout, tmp_path, str(path), f"has {layout.size(name) - 1:,} bytes", f"expected {layout.size(name):,}")
    path.unlink()
    refused(layout, tmp_path, str(path), "is missing")


@LAYOUTS
def test_a_label_out_of_range(layout, tmp_path):
    files = contents(layout)
    last = list(layout.files)[-1]
    files[last][2, len(layout.labels) - 1] = layout.labels[-1]
    unpack(tmp_path / layout.folder, files)
    refused(layout, tmp_path, last, f"record 2 has label {layout.labels[-1]}")


def test_archive_that_is_cut_or_flipped_or_none(tmp_path):
    path = tmp_path / SMALL10.archive
    pack(path, SMALL10, contents(SMALL10))
    whole = path.read_bytes()
    for size in (0, 1, 10, 600, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:size])
        refused(SMALL10, tmp_path, SMALL10.archive)
    for at in range(len(whole) // 7, len(whole), len(whole) // 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        refused(SMALL10, tmp_path, str(tmp_path))
    path.write_bytes(b"<html>not found</html>")
    refused(SMALL10, tmp_path, "damaged or unreadable", "download https://")
    with gzip.open(path, "wb") as stream:
        stream.write(b"x" * 2048)
    refused(SMALL10, tmp_path, "damaged or unreadable")


def test_archive_with_wrong_members(tmp_path):
    path, files = tmp_path / SMALL10.archive, contents(SMALL10)
    pack(path, SMALL10, files, extra=[("test_batch.bin", files["test_batch.bin"])])
    refused(SMALL10, tmp_path, "test_batch.bin: is there twice")
    pack(path, SMALL10, {**files, "data_batch_2.bin": files["data_batch_2.bin"][:3]})
    refused(SMALL10, tmp_path, "data_batch_2.bin has 9,219 bytes, expected 12,292")
    del files["data_batch_4.bin"]
    pack(path, SMALL10, files)
    refused(SMALL10, tmp_path, "lacks data_batch_4.bin")


def test_a_link_is_no_file(tmp_path):
    path, files = tmp_path / SMALL10.archive, contents(SMALL10)
    del files["test_batch.bin"]
    pack(path, SMALL10, files)
    with gzip.open(path) as stream:
        raw = stream.read()
    link = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with gzip.open(path, "wb") as stream:
        stream.write(link.tobuf() + raw)
    refused(SMALL10, tmp_path, "lacks test_batch.bin")


def test_a_member_that_claims_to_be_huge_is_refused_before_it_is_read(tmp_path):
    for kind in (tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        entry = tarfile.TarInfo("bomb")
        entry.size, entry.type = 8**11 - 1, kind
        with gzip.open(tmp_path / SMALL10.archive, "wb") as stream:
            stream.write(entry.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
        refused(SMALL10, tmp_path, "bomb claims 8,589,934,591 bytes")


def test_an_endless_archive_is_given_up(tmp_path):
    one = tarfile.TarInfo("empty").tobuf()
    with gzip.open(tmp_path / SMALL10.archive, "wb") as stream:
        stream.write(one * (archives.MAX_MEMBERS + archives.TAIL // archives.BLOCK + 1))
    refused(SMALL10, tmp_path, "has over 64 members")
