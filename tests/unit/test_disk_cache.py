"""Level 2: newest version, whole or absent."""

import errno
import os
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from caches import LABELS, acts, batch_files, everything

from edge_app.cache.disk import DiskCache
from emo.errors import CacheError

# --- disk


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8])
@pytest.mark.parametrize("shape", [(4,), (4, 7), (4, 3, 2, 2), (0, 5)])
def test_what_was_put_comes_back_also_after_a_restart(tmp_path, dtype, shape):
    rng = np.random.default_rng(0)
    activations = (100 * rng.standard_normal(shape)).astype(dtype)
    labels = rng.integers(0, 9, shape[:1]).astype(np.int32)
    for _ in range(2):
        with DiskCache(tmp_path) as disk:
            if not disk.keys():
                assert disk.put("pi-01", 300, 7, activations, labels)
            entry = disk.get("pi-01", 300)
            assert (entry.device, entry.batch, entry.version) == ("pi-01", 300, 7)
            assert entry.activations.dtype == activations.dtype
            assert entry.labels.dtype == labels.dtype
            np.testing.assert_array_equal(entry.activations, activations)
            np.testing.assert_array_equal(entry.labels, labels)
            assert disk.keys() == [("pi-01", 300)]
            assert disk.version("pi-01", 300) == 7


def test_only_the_newest_version_is_kept(disk, tmp_path):
    assert disk.put("d", 0, 5, acts(5), LABELS)
    assert not disk.put("d", 0, 4, acts(4), LABELS)
    assert not disk.put("d", 0, 5, acts(-5), LABELS)  # delivered twice
    assert disk.get("d", 0).activations[0, 0, 0, 0] == 5
    assert disk.put("d", 0, 6, acts(6), LABELS)
    assert disk.get("d", 0).version == 6
    assert len(batch_files(tmp_path)) == 1
    stats = disk.stats()
    assert (stats["entries"], stats["stored"], stats["ignored"]) == (1, 2, 2)
    assert stats["bytes"] == batch_files(tmp_path)[0].stat().st_size


def test_overwriting_does_not_grow(disk, tmp_path):
    big = np.zeros((16, 4096), np.float32)
    for version in range(20):
        disk.put("d", 0, version, big, np.arange(16))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.*")) < 1.05 * big.nbytes


def test_the_file_is_plain_hdf5_that_says_what_it_is(disk, tmp_path):
    disk.put("d", 3, 9, acts(1.5), LABELS)
    (path,) = batch_files(tmp_path)
    with h5py.File(path) as file:
        assert (file.attrs["device"], file.attrs["batch"], file.attrs["version"]) == (b"d", 3, 9)
        assert list(file.attrs["shape"]) == [4, 3, 2, 2]
        assert file.attrs["dtype"] == b"<f4"
        assert (file["activations"][()] == 1.5).all()
        assert list(file["labels"]) == [0, 1, 2, 3]


def test_keys_and_delete(disk, tmp_path):
    for batch, version in ((0, 3), (1, 1), (256, 2)):
        disk.put("d", batch, version, acts(0), LABELS)
    assert disk.keys() == [("d", 1), ("d", 256), ("d", 0)]
    assert disk.delete("d", 1)
    assert not disk.delete("d", 1)
    assert disk.get("d", 1) is None
    assert len(batch_files(tmp_path)) == 2
    assert disk.begin("two")
    assert disk.keys() == []
    assert everything(tmp_path) == ["lock", "run"]
    assert disk.put("d", 0, 0, acts(0), LABELS)  # an older version than before: a new run
    assert not disk.begin("two")
    assert disk.keys() == [("d", 0)]


def test_a_restart_knows_whose_batches_it_holds(tmp_path):
    with DiskCache(tmp_path) as disk:
        disk.begin("one")
        disk.put("d", 0, 7, acts(0), LABELS)
    with DiskCache(tmp_path) as disk:
        assert not disk.begin("one")
        assert disk.keys() == [("d", 0)]
    with DiskCache(tmp_path) as disk:
        assert disk.begin("two")
        assert disk.keys() == []


def test_every_flipped_or_missing_byte_is_a_miss(tmp_path):
    rng = np.random.default_rng(1)
    with DiskCache(tmp_path) as disk:
        for batch in range(150):
            disk.put("d", batch, 1, acts(batch), LABELS)
        for path in batch_files(tmp_path):
            data = bytearray(path.read_bytes())
            place = rng.integers(len(data))
            if rng.random() < 0.5:
                data[place] ^= 1 << rng.integers(8)
            elif rng.random() < 0.5:
                del data[place:]
            else:
                data += b"x"
            path.write_bytes(data)
        assert [disk.get("d", batch) for batch in range(150)] == [None] * 150
        assert disk.stats()["damaged"] == 150
        assert disk.keys() == []
        assert len(list((tmp_path / "damaged").iterdir())) == 150
        assert disk.put("d", 0, 1, acts(0), LABELS)  # the same version may come again
        assert disk.get("d", 0) is not None


def test_a_file_under_anothers_name_is_a_miss(disk, tmp_path):
    disk.put("d", 0, 1, acts(0), LABELS)
    disk.put("d", 256, 1, acts(1), LABELS)
    disk.close()
    first, second = batch_files(tmp_path)
    crc = second.stem.split("-")[2]
    assert second.name.startswith("256-")
    second.rename(first.with_name(f"0-2-{crc}.h5"))
    with DiskCache(tmp_path) as again:
        assert again.get("d", 0) is None
        assert again.stats()["damaged"] == 1


def test_whole_hdf5_that_is_not_ours_is_a_miss(disk, tmp_path):
    import zlib

    disk.put("d", 0, 1, acts(0), LABELS)
    disk.close()
    (path,) = batch_files(tmp_path)
    path.unlink()
    for batch, labels in enumerate((None, "text", [["a", "b"]])):
        other = path.parent.with_name(f"{batch:02x}") / "other"
        other.parent.mkdir(exist_ok=True)
        with h5py.File(other, "w") as file:
            if labels is not None:
                file["activations"], file["labels"] = labels, labels
                file.attrs.update({"device": b"d", "batch": batch, "version": 1, "crc32": 0})
        other.rename(other.with_name(f"{batch}-1-{zlib.crc32(other.read_bytes()):08x}.h5"))
    with DiskCache(tmp_path) as again:
        assert len(again.keys()) == 3
        assert [again.get("d", batch) for batch in range(3)] == [None] * 3
        assert again.stats()["damaged"] == 3


def test_start_clears_up_after_a_kill_and_sets_foreign_files_aside(disk, tmp_path):
    disk.put("d", 0, 1, acts(1), LABELS)
    (one,) = batch_files(tmp_path)
    kept = one.read_bytes()
    disk.put("d", 0, 2, acts(2), LABELS)
    disk.close()
    one.write_bytes(kept)  # killed between rename and removal of the older version
    (one.parent / ".3.tmp").write_bytes(b"half")
    (one.parent / "notes.txt").write_text("foreign")
    (one.parent / "1-1-00000000.h5").write_bytes(b"of another folder")
    (tmp_path / "old").mkdir()
    with DiskCache(tmp_path) as again:
        assert again.keys() == [("d", 0)]
        assert again.get("d", 0).version == 2
        assert again.stats()["damaged"] == 2
    assert len(batch_files(tmp_path)) == 1
    assert not list(tmp_path.rglob("*.tmp"))
    assert not (tmp_path / "old").exists()
    assert len(list((tmp_path / "damaged").iterdir())) == 2


def test_a_second_edge_is_refused(disk, tmp_path):
    with pytest.raises(CacheError, match="another edge"):
        DiskCache(tmp_path)
    disk.close()
    DiskCache(tmp_path).close()


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot be used"):
        DiskCache(tmp_path / "file" / "cache")


@pytest.mark.parametrize("device", ["..", "../up", "a/b", "", ".x", "a\n", "x" * 65, "a\0b"])
def test_an_id_cannot_leave_the_folder(disk, device):
    for call in (lambda: disk.put(device, 0, 0, acts(0), LABELS), lambda: disk.get(device, 0)):
        with pytest.raises(CacheError, match="not a device id"):
            call()


def test_what_cannot_be_stored_is_refused(disk):
    with pytest.raises(CacheError, match="not a device id"):
        disk.put("d", -1, 0, acts(0), LABELS)
    with pytest.raises(CacheError, match="version"):
        disk.put("d", 0, -1, acts(0), LABELS)
    with pytest.raises(CacheError, match="do not fit"):
        disk.put("d", 0, 0, acts(0), LABELS[:3])
    with pytest.raises(CacheError, match="cannot store object"):
        disk.put("d", 0, 0, np.array([None] * 4), LABELS)
    disk.close()
    with pytest.raises(CacheError, match="closed"):
        disk.get("d", 0)


@pytest.mark.parametrize("failure", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("key", [("d", 0), ("other", 1)])  # the second one needs its folders first
def test_whatever_step_of_a_put_fails_the_version_before_stays(disk, tmp_path, monkeypatch, failure, key):
    disk.put("d", 0, 1, acts(1), LABELS)
    before = everything(tmp_path)
    calls = []

    def failing_at(number, real):
        def call(*args, **kwargs):
            calls.append(real.__name__)
            if len(calls) == number:
                raise OSError(failure, os.strerror(failure))
            return real(*args, **kwargs)

        return call

    for number in range(1, 99):
        calls.clear()
        with monkeypatch.context() as patch:
            for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "open"), (Path, "mkdir")):
                patch.setattr(owner, name, failing_at(number, getattr(owner, name)))
            try:
                assert disk.put(*key, 2, acts(2), LABELS)
                break
            except CacheError as error:
                assert os.strerror(failure) in str(error)  # noqa: PT017 - the last put must not raise
        assert everything(tmp_path) == before
        assert disk.get("d", 0).version == 1
    assert calls[-4:] == ["open", "fsync", "rename", "fsync"]  # whole before it has the name, then the name
    assert number == len(calls) + 1
    assert disk.get(*key).version == 2


def test_full_disk_halfway_through_a_write(disk, tmp_path, monkeypatch):
    import io

    disk.put("d", 0, 1, acts(1), LABELS)
    before = everything(tmp_path)

    class Filling(io.FileIO):
        def write(self, data):
            if self.tell() > 1000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(bytes(data)[:700])

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, mode, buffering: Filling(self, "x"))
        with pytest.raises(CacheError, match="No space left on device"):
            disk.put("d", 0, 2, acts(2), LABELS)
    assert everything(tmp_path) == before
    assert disk.get("d", 0).version == 1
    assert disk.put("d", 0, 2, acts(2), LABELS)


def test_readers_and_writers_at_the_same_time_see_whole_versions(disk):
    stop, seen, failures = threading.Event(), [], []

    def read():
        last = -1
        while not stop.is_set():
            entry = disk.get("d", 0)
            if entry is None or entry.version < last or (entry.activations != entry.version).any():
                failures.append(entry)
            last = entry.version
            seen.append(last)

    disk.put("d", 0, 0, acts(0), LABELS)
    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for version in range(1, 100):
        disk.put("d", 0, version, acts(version), LABELS)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(set(seen)) > 3
