"""Level 2: newest version, whole or absent."""

import threading

import numpy as np
import pytest
from caches import LABELS, acts, batch_files, everything, remove, size_of

from edge_app.cache.disk import DiskCache
from emo.errors import CacheError
from emo.wire import codec


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8, ">f4"])
@pytest.mark.parametrize("shape", [(4,), (4, 7), (4, 3, 2, 2), (1, 5)])
def test_what_was_put_comes_back_also_after_a_restart(tmp_path, dtype, shape):
    rng = np.random.default_rng(0)
    activations = (100 * rng.standard_normal(shape)).astype(dtype)
    labels = rng.integers(0, 9, shape[:1]).astype(np.int32)
    for _ in range(2):
        with DiskCache(tmp_path) as disk:
            if not disk.keys():
                assert disk.put("pi-01", 300, 7, activations, labels)
            entry = disk.get("pi-01", 300)
            assert (entry.device, entry.batch, entry.version, entry.codec) == ("pi-01", 300, 7, "")
            assert entry.activations.dtype == activations.dtype
            assert entry.labels.dtype == labels.dtype
            np.testing.assert_array_equal(entry.activations, activations)
            np.testing.assert_array_equal(entry.labels, labels)
            entry.activations[:] = 0  # its own
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


def test_keys_and_begin(disk, tmp_path):
    for batch, version in ((0, 3), (1, 1), (256, 2)):
        disk.put("d", batch, version, acts(0), LABELS)
    assert disk.keys() == [("d", 1), ("d", 256), ("d", 0)]
    remove(disk, "d", 1)
    assert disk.get("d", 1) is None
    assert len(batch_files(tmp_path)) == 2
    assert disk.begin("two")
    assert disk.keys() == []
    assert disk.stats()["bytes"] == 0
    assert [name for name in everything(tmp_path) if "damaged/" not in name] == ["lock", "run"]
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
        for batch in range(300):
            content = acts(batch) if batch % 2 else codec.encode(acts(batch), "int8")
            disk.put("d", batch, 1, content, LABELS)
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
        assert [disk.get("d", batch) for batch in range(300)] == [None] * 300
        assert disk.stats()["damaged"] == 300
        assert disk.stats()["bytes"] == 0
        assert disk.keys() == []
        assert len(everything(tmp_path / "damaged")) == 256  # a failing disk is not filled with these
        assert not batch_files(tmp_path)
        assert disk.put("d", 0, 1, acts(0), LABELS)  # the same version may come again
        assert disk.get("d", 0) is not None


def test_a_file_under_anothers_name_is_a_miss(disk, tmp_path):
    disk.put("d", 0, 1, acts(0), LABELS)
    disk.put("d", 255, 1, acts(1), LABELS)
    disk.close()
    first, second = batch_files(tmp_path)
    crc = second.stem.split("-")[2]
    assert second.name.startswith("255-")
    second.rename(first.with_name(f"1-1-{crc}.h5"))
    with DiskCache(tmp_path) as again:
        assert again.get("d", 1) is None
        assert again.get("d", 0) is not None
        assert again.stats()["damaged"] == 1


def test_start_clears_up_after_a_kill_and_sets_foreign_files_aside(disk, tmp_path):
    disk.put("d", 0, 1, acts(1), LABELS)
    (one,) = batch_files(tmp_path)
    kept = one.read_bytes()
    disk.put("d", 0, 2, acts(2), LABELS)
    disk.close()
    one.write_bytes(kept)  # killed between rename and removal of the older version
    (one.parent / ".3.tmp").write_bytes(b"half")
    (tmp_path / ".4.tmp").write_bytes(b"half")
    (one.parent / "notes.txt").write_text("foreign")
    (one.parent / "256-1-00000000.h5").write_bytes(b"of another folder")
    (one.parent / "1-1-00000000.h5").mkdir()
    (tmp_path / "old").mkdir()
    with DiskCache(tmp_path) as again:
        assert again.keys() == [("d", 0)]
        assert again.get("d", 0).version == 2
        assert again.stats()["damaged"] == 3
        assert again.stats()["bytes"] == size_of(tmp_path / "batches")
    assert len(batch_files(tmp_path)) == 1
    assert not list(tmp_path.rglob("*.tmp"))
    assert not (tmp_path / "old").exists()
    assert len(list((tmp_path / "damaged").iterdir())) == 3


def test_of_several_versions_the_newest_that_is_whole_counts(disk, tmp_path):
    """As a power cut may leave them."""
    contents = {}
    for version in (1, 2, 3, 4):
        disk.put("d", 0, version, acts(version), LABELS)
        (path,) = batch_files(tmp_path)
        contents[path] = path.read_bytes()
    disk.close()
    for path, data in contents.items():
        path.write_bytes(data)
    newest = max(contents)
    newest.write_bytes(contents[newest][:-5])
    sorted(contents)[2].write_bytes(b"")
    with DiskCache(tmp_path) as again:
        assert again.get("d", 0).version == 2
        assert again.stats()["damaged"] == 2
        assert again.stats()["bytes"] == size_of(tmp_path / "batches")
    assert len(batch_files(tmp_path)) == 1


def test_start_says_how_far_it_is(disk, tmp_path, monkeypatch):
    monkeypatch.setattr("edge_app.cache.disk._PROGRESS", 10)
    for batch in range(25):
        disk.put("d", batch, 0, acts(0), LABELS)
    disk.close()
    said = []
    DiskCache(tmp_path, say=said.append).close()
    assert said == [10, 20]


def test_a_second_edge_is_refused(disk, tmp_path):
    with pytest.raises(CacheError, match="another edge"):
        DiskCache(tmp_path)
    disk.close()
    DiskCache(tmp_path).close()


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot be used"):
        DiskCache(tmp_path / "file" / "cache")
    (tmp_path / "batches" / "d" / "00").mkdir(parents=True)
    for name in ("0-1-00000000.h5", "0-2-00000000.h5"):
        (tmp_path / "batches" / "d" / "00" / name).symlink_to(tmp_path / "file")
    DiskCache(tmp_path).close()  # and it was left to others in both cases


def test_an_option_that_there_is_not_is_named(tmp_path):
    with pytest.raises(CacheError, match="oldest"):
        DiskCache(tmp_path, 1, "odlest")
    with pytest.raises(CacheError, match="group"):
        DiskCache(tmp_path, durability="groups")


@pytest.mark.parametrize("device", ["..", "../up", "a/b", "", ".x", "a\n", "x" * 65, "a\0b"])
def test_an_id_cannot_leave_the_folder(disk, device):
    for call in (lambda: disk.put(device, 0, 0, acts(0), LABELS), lambda: disk.get(device, 0)):
        with pytest.raises(CacheError, match="not a device id"):
            call()


def test_the_largest_names_there_may_be(disk):
    device, largest = "x" * 64, 10**19 - 1
    assert disk.put(device, largest, largest, acts(2), LABELS)
    assert disk.get(device, largest).version == largest


def test_a_folder_that_somebody_removed_is_made_again(disk, tmp_path):
    disk.put("d", 0, 1, acts(1), LABELS)
    (path,) = batch_files(tmp_path)
    path.unlink()
    path.parent.rmdir()
    with pytest.raises(CacheError, match="No such file"):
        disk.put("d", 1, 1, acts(1), LABELS)
    assert disk.put("d", 1, 1, acts(1), LABELS)
    assert disk.get("d", 0) is None


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


def test_two_threads_that_store_the_same_leave_it_there(disk, tmp_path):
    for version in range(30):
        threads = [threading.Thread(target=disk.put, args=("d", 0, version, acts(version), LABELS)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert disk.get("d", 0).version == version
    assert len(batch_files(tmp_path)) == 1
    assert disk.stats()["damaged"] == 0
