"""What the edge may rely on: newest version, whole or absent, on disk; new batches first; no waiting."""

import errno
import os
import threading
import time
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_app.cache import ReplayCache
from edge_app.cache.disk import DiskCache
from edge_app.cache.memory import Memory, Sample
from edge_app.cache.sampling import Mixed
from emo.errors import CacheError

LABELS = np.arange(4)


def acts(value, shape=(4, 3, 2, 2)):
    return np.full(shape, value, np.float32)


def batch_files(root):
    return sorted(Path(root, "batches").rglob("*.h5"))


def everything(root):
    return sorted(p.relative_to(root).as_posix() for p in Path(root).rglob("*") if p.is_file())


@pytest.fixture
def disk(tmp_path):
    with DiskCache(tmp_path) as cache:
        yield cache


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


# --- sampling


@given(st.lists(st.integers(0, 9) | st.just(None), max_size=80), st.integers(0, 99))
def test_mixed_new_batches_newest_first_before_any_replay(calls, seed):
    sampler, fresh, known = Mixed(np.random.default_rng(seed)), [], set()
    for batch in calls:
        if batch is not None:
            key = ("d", batch)
            sampler.add(key)
            fresh = [k for k in fresh if k != key] + [key]
            known.add(key)
            continue
        picked = sampler.pick()
        if fresh:
            assert picked == fresh.pop()
        else:
            assert (picked is None) == (not known)
            assert picked is None or picked in known
        assert sampler.fresh == len(fresh)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=60))
def test_mixed_never_names_what_was_removed(calls):
    sampler, known = Mixed(np.random.default_rng(0)), set()
    for add, batch in calls:
        (sampler.add if add else sampler.remove)(("d", batch))
        (known.add if add else known.discard)(("d", batch))
        assert len(sampler) == len(known)
    assert {sampler.pick() for _ in range(200)} - {None} <= known


def test_replay_is_uniform_and_seeded():
    def draw(seed):
        sampler = Mixed(np.random.default_rng(seed))
        for batch in range(10):
            sampler.add(("d", batch))
        return [sampler.pick() for _ in range(5010)][10:]

    counts = Counter(draw(0)).values()
    assert sum((n - 500) ** 2 / 500 for n in counts) < 27.9  # chi-square, 9 degrees, p = 0.001
    assert draw(1) == draw(1) != draw(2)


# --- memory


def tensors(batch, n=10):
    return Sample("d", batch, 0, torch.zeros(n, dtype=torch.float32), torch.zeros(0, dtype=torch.int64))


def test_memory_drops_what_was_trained_on_longest_ago():
    memory = Memory(100)
    for batch in range(2):
        memory.place(("d", batch), tensors(batch))
    memory.use(("d", 0))
    memory.place(("d", 2), tensors(2))
    assert memory.use(("d", 1)) is None
    assert memory.use(("d", 0)) is not None
    memory.place(("d", 3), tensors(3, 26))  # larger than all of it: kept out, pushes nothing out
    assert (len(memory), memory.nbytes) == (2, 80)
    memory.place(("d", 0), tensors(0, 5))
    assert memory.nbytes == 60
    memory.clear()
    assert (len(memory), memory.nbytes) == (0, 0)


# --- the cache


def test_an_empty_cache_does_not_wait(disk):
    start = time.perf_counter()
    assert ReplayCache(disk, 10**6, seed=0).sample() is None
    assert time.perf_counter() - start < 1


def test_newest_first_then_from_memory(disk):
    cache = ReplayCache(disk, 10**6, seed=0)
    for batch in range(3):
        assert cache.put("d", batch, 1, acts(batch).astype(np.float16), LABELS.astype(np.uint8))
    samples = [cache.sample() for _ in range(3)]
    assert [s.batch for s in samples] == [2, 1, 0]
    assert samples[0].activations.dtype == torch.float32
    assert samples[0].labels.dtype == torch.int64
    assert (samples[0].activations == 2).all()
    assert cache.stats()["disk_reads"] == 3
    for _ in range(20):
        cache.sample()
    stats = cache.stats()
    assert (stats["disk_reads"], stats["memory_hits"], stats["memory_entries"]) == (3, 20, 3)
    assert stats["fresh"] == 0


def test_a_new_version_is_fresh_and_replaces_the_tensor_in_memory(disk):
    cache = ReplayCache(disk, 10**6, seed=0)
    for version in range(5):
        cache.put("d", 0, version, acts(version), LABELS)
        assert not cache.put("d", 0, version, acts(9), LABELS)
        sample = cache.sample()
        assert (sample.version, float(sample.activations[0, 0, 0, 0])) == (version, version)
    assert cache.get("d", 0).version == 4
    assert cache.stats()["memory_entries"] == 1


def test_memory_is_bounded_and_the_rest_comes_from_disk(disk):
    one = acts(0).nbytes + LABELS.nbytes
    cache = ReplayCache(disk, 2 * one, seed=0)
    for batch in range(6):
        cache.put("d", batch, 0, acts(batch), LABELS)
    drawn = Counter(cache.sample().batch for _ in range(200))
    assert set(drawn) == set(range(6))
    assert cache.stats()["memory_bytes"] == 2 * one
    assert cache.stats()["disk_reads"] > 50


def test_a_damaged_file_is_skipped(disk, tmp_path):
    cache = ReplayCache(disk, 10**6, seed=0)
    for batch in range(3):
        cache.put("d", batch, batch, acts(batch), LABELS)
    batch_files(tmp_path)[2].write_bytes(b"junk")
    assert [cache.sample().batch for _ in range(2)] == [1, 0]
    assert 2 not in {cache.sample().batch for _ in range(50)}
    for path in batch_files(tmp_path):
        path.unlink()
    empty = ReplayCache(disk, 0, seed=0)
    assert empty.sample() is None
    assert disk.stats()["damaged"] == 3


def test_restart_replays_what_is_on_disk_and_another_run_forgets_it(tmp_path):
    with DiskCache(tmp_path) as disk:
        for batch, version in ((0, 9), (1, 3)):
            disk.put("d", batch, version, acts(batch), LABELS)
    with DiskCache(tmp_path) as disk:
        cache = ReplayCache(disk, 10**6, seed=0)
        assert [cache.sample().batch for _ in range(2)] == [0, 1]
        cache.begin("another run")
        assert cache.sample() is None
        assert cache.get("d", 0) is None
        assert cache.stats()["memory_bytes"] == 0
        assert cache.put("d", 0, 0, acts(0), LABELS)
        assert cache.sample().version == 0


def test_a_version_that_comes_while_the_older_is_read_stays_fresh(disk, monkeypatch):
    cache = ReplayCache(disk, 10**6, seed=0)
    cache.put("d", 0, 1, acts(1), LABELS)
    real = disk.get

    def overtaken(device, batch):
        entry = real(device, batch)
        monkeypatch.undo()
        cache.put("d", 0, 2, acts(2), LABELS)
        return entry

    monkeypatch.setattr(disk, "get", overtaken)
    assert cache.sample().version == 1
    assert cache.stats()["fresh"] == 1
    assert cache.sample().version == 2
    assert cache.sample().version == 2


def test_receiving_and_training_do_not_wait_for_each_others_disk(disk, monkeypatch):
    """A put that hangs in its sync stops no sample, and a sample that hangs in its read stops no put."""
    cache = ReplayCache(disk, 10**6, seed=0)
    cache.put("d", 0, 0, acts(0), LABELS)
    for stuck, other in (("put", "sample"), ("sample", "put")):
        hanging, go, real_sync, real_get = threading.Event(), threading.Event(), os.fsync, disk.get

        def hang(real, *args, hanging=hanging, go=go):
            if not hanging.is_set():
                hanging.set()
                go.wait(20)
            return real(*args)

        calls = {
            "put": lambda: cache.put("d", 1, time.monotonic_ns(), acts(1), LABELS),
            "sample": cache.sample,
        }
        with monkeypatch.context() as patch:
            if stuck == "put":
                patch.setattr(os, "fsync", lambda fd, hang=hang, real=real_sync: hang(real, fd))
            else:
                cache.put("d", 0, time.monotonic_ns(), acts(0), LABELS)  # fresh, so it is read from disk
                patch.setattr(disk, "get", lambda *key, hang=hang, real=real_get: hang(real, *key))
            thread = threading.Thread(target=calls[stuck])
            thread.start()
            assert hanging.wait(20)
            assert calls[other]()
            assert thread.is_alive()
            go.set()
            thread.join(20)
            assert not thread.is_alive()
