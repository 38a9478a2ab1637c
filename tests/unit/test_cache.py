"""Sampling, level 1 and the whole: new batches first, no waiting."""

import os
import threading
import time
from collections import Counter

import numpy as np
import torch
from caches import LABELS, acts, batch_files
from hypothesis import given
from hypothesis import strategies as st

from edge_app.cache import ReplayCache
from edge_app.cache.disk import DiskCache
from edge_app.cache.memory import Memory, Sample
from edge_app.cache.sampling import Mixed

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
