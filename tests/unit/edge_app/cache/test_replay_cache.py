"""The whole replay cache, one call after the other: new batches first, bounded, nothing stale."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from caches import LABELS, acts, batch_files, fail_at, remove
from replays import ONE, caches_over, fill, settled

from edge_app.cache.disk import DiskCache
from edge_app.cache.replay_cache import ReplayCache
from emo.errors import CacheError
from emo.wire import codec


@pytest.fixture
def make(disk):
    with caches_over(disk) as one:
        yield one


def test_an_empty_cache_does_not_wait(make):
    assert make().sample() is None


def test_newest_first_then_from_memory(make):
    cache = make()
    for batch in range(3):
        assert cache.put("d", batch, 1, acts(batch).astype(np.float16), LABELS.astype(np.uint8))
    samples = [cache.sample() for _ in range(3)]
    assert [s.batch for s in samples] == [2, 1, 0]
    for sample in samples:
        assert (sample.activations.dtype, sample.labels.dtype) == (torch.float32, torch.int64)
        assert (sample.activations == sample.batch).all()
        assert sample.labels.tolist() == LABELS.tolist()
        assert sample.weight == 1.0
    for _ in range(20):
        cache.sample()
    stats = cache.stats()
    assert (stats["disk_reads"], stats["memory_hits"], stats["memory_entries"]) == (0, 23, 3)
    assert (stats["fresh"], stats["starved_us"], stats["prefetched"]) == (0, 0, 0)


def test_a_new_version_is_fresh_and_replaces_the_tensor_in_memory(make):
    cache = make()
    for version in range(5):
        cache.put("d", 0, version, acts(version), LABELS)
        assert not cache.put("d", 0, version, acts(9), LABELS)
        assert cache.stats()["fresh"] == 1
        sample = cache.sample()
        assert (sample.version, float(sample.activations[0, 0, 0, 0])) == (version, version)
    assert cache.get("d", 0).version == 4
    assert cache.stats()["memory_entries"] == 1


def test_what_is_compared_with_comes_from_memory_while_the_disk_has_the_same(make, disk):
    cache = make()
    cache.put("d", 0, 1, acts(1), LABELS)
    entry = cache.get("d", 0)
    assert (entry.version, entry.labels.tolist(), disk.stats()["hits"]) == (1, LABELS.tolist(), 0)
    assert (entry.activations == 1).all()
    entry.activations[:] = 5  # a copy
    assert (cache.get("d", 0).activations == 1).all()
    remove(disk, "d", 0)
    assert cache.get("d", 0) is None


def test_after_a_failed_sync_it_is_the_version_before(tmp_path, monkeypatch):
    with DiskCache(tmp_path, durability="group") as disk, caches_over(disk) as make:
        cache = make()
        cache.put("d", 0, 1, acts(1), LABELS)
        cache.flush()
        cache.put("d", 0, 2, acts(2), LABELS)
        assert cache.get("d", 0).version == 2
        with monkeypatch.context() as patch:
            fail_at(patch, 1)
            with pytest.raises(CacheError, match="could not be synced"):
                cache.flush()
        entry = cache.get("d", 0)
        assert (entry.version, float(entry.activations[0, 0, 0, 0])) == (1, 1)


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("slots", [0, 2])
def test_memory_is_bounded_and_the_rest_comes_from_disk(make, slots, prefetch):
    cache = make(slots, prefetch=prefetch)
    fill(cache, 6)
    for _ in range(200):
        sample = cache.sample()
        assert (sample.activations == sample.batch).all()
    stats = cache.stats()
    assert (stats["memory_entries"], stats["memory_bytes"]) == (slots, slots * ONE)
    assert stats["memory_hits"] + stats["disk_reads"] == 200
    assert (stats["prefetched"] > 0) == bool(prefetch and slots)
    assert (stats["starved_us"] > 0) == (stats["disk_reads"] > 0)


def test_every_batch_comes_up_in_replay(make):
    cache = make(2)
    fill(cache, 6)
    assert set(Counter(cache.sample().batch for _ in range(300))) == set(range(6))


def test_batches_of_another_size_or_shape_are_served_too(make):
    cache = make(3)
    fill(cache, 2)
    cache.put("d", 2, 0, acts(2, (3, 3, 2, 2)), LABELS[:3])
    cache.put("d", 3, 0, acts(3, (4, 5)), LABELS)
    for _ in range(40):
        sample = cache.sample()
        shape = {2: (3, 3, 2, 2), 3: (4, 5)}.get(sample.batch, (4, 3, 2, 2))
        assert sample.activations.shape == shape
        assert len(sample.labels) == shape[0]
        assert (sample.activations == sample.batch).all()
    assert cache.stats()["disk_reads"] > 0


def test_encoded_bytes_are_what_is_stored_and_the_array_goes_to_memory(make, disk):
    cache = make()
    array = np.random.default_rng(0).random((4, 3, 2, 2), np.float32)
    data = codec.encode(array, "int8")
    decoded = codec.decode(data, array.nbytes)
    cache.put("d", 0, 1, decoded, LABELS, data)
    assert torch.equal(cache.sample().activations, torch.from_numpy(decoded))
    assert (cache.stats()["memory_hits"], disk.get("d", 0).codec) == (1, "int8")
    again = make(0)
    assert torch.equal(again.sample().activations, torch.from_numpy(decoded))
    assert again.stats()["disk_reads"] == 1


def test_level_one_is_a_share_of_what_there_is(make, disk):
    cache = make(memory_share=0.25)
    for count in range(1, 13):
        cache.put("d", count, 0, acts(count), LABELS)
        assert cache.stats()["memory_entries"] == count // 4
    for batch in range(1, 9):
        remove(disk, "d", batch)
        disk.on_evict("d", batch)
    settled(cache)
    assert cache.stats()["memory_entries"] == 1


def test_what_is_evicted_is_never_sampled(tmp_path):
    with DiskCache(tmp_path, budget_bytes=40_000) as disk:
        cache = ReplayCache(disk, 100 * ONE, 0)
        there = set()
        for batch in range(40):
            cache.put("d", batch, batch, acts(batch), LABELS)
            there = {key[1] for key in disk.keys()}  # noqa: SIM118 - a method of ours
            for _ in range(5):
                assert cache.sample().batch in there
        stats = cache.stats()
        assert 0 < stats["memory_entries"] == stats["entries"] == len(there) < 40
        assert len(cache._sampler) == len(there)


def test_a_damaged_file_is_skipped(make, disk, tmp_path):
    cache = make(0)
    for batch in range(3):
        cache.put("d", batch, batch, acts(batch), LABELS)
    batch_files(tmp_path)[2].write_bytes(b"junk")
    assert [cache.sample().batch for _ in range(2)] == [1, 0]
    assert 2 not in {cache.sample().batch for _ in range(50)}
    for path in batch_files(tmp_path):
        path.unlink()
    assert make().sample() is None
    assert disk.stats()["damaged"] == 3


def test_restart_replays_what_is_on_disk_and_another_run_forgets_it(tmp_path):
    with DiskCache(tmp_path) as disk:
        for batch, version in ((0, 9), (1, 3)):
            disk.put("d", batch, version, acts(batch), LABELS)
    with DiskCache(tmp_path) as disk:
        cache = ReplayCache(disk, 10**6, seed=0, prefetch=False)
        assert [cache.sample().batch for _ in range(2)] == [0, 1]
        cache.begin("another run")
        assert cache.sample() is None
        assert cache.get("d", 0) is None
        assert cache.stats()["memory_bytes"] == 0
        assert cache.put("d", 0, 0, acts(0), LABELS)
        assert cache.sample().version == 0


def test_losses_reach_the_sampler_and_the_disk_unless_a_newer_version_has_come(make, disk, monkeypatch):
    noted = []
    monkeypatch.setattr(disk, "note_loss", lambda *loss: noted.append(loss))
    cache = make(sampling="importance")
    fill(cache, 3)
    samples = {sample.batch: sample for sample in (cache.sample() for _ in range(200))}
    cache.trained(samples[0], 3.0)
    cache.trained(samples[1], math.nan)
    cache.put("d", 2, 1, acts(2), LABELS)
    cache.trained(samples[2], 5.0)
    assert noted == [("d", 0, 3.0)]
    assert cache.stats()["trained"] == 2
    assert cache.trained_counts() == {0: 1, 1: 2}
    weights = {sample.batch: sample.weight for sample in (cache.sample() for _ in range(400))}
    assert weights[0] == weights[2] == pytest.approx(1 / (0.2 + 0.8 * 3 / 2))  # not known: as the highest
    assert weights[1] == pytest.approx(1 / 0.2)


def test_ages_and_counts_are_told_in_powers_of_two(make):
    cache = make()
    for batch, version in enumerate((20, 20, 19, 18, 17, 16, 0, 25)):
        cache.put("d", batch, version, acts(batch), LABELS)
    assert cache.ages(20) == {0: 3, 1: 1, 2: 2, 4: 1, 8: 0, 16: 1}
    assert make(0).ages(0) == {0: 8}
    for _ in range(8 * 5):
        cache.trained(cache.sample(), 1.0)
    counts = cache.trained_counts()
    assert sum(counts.values()) == 8
    assert counts[0] == 0
    cache.begin("empty")
    assert cache.ages(3) == cache.trained_counts() == {}


def test_flush_is_the_disks(make, disk, monkeypatch):
    flushed = []
    monkeypatch.setattr(disk, "flush", lambda: flushed.append(True))
    make().flush()
    assert flushed
