"""The cache's own thread: what is planned is there in time, and the samples are the same without it."""

import random
import threading
import time
from collections import Counter

import pytest
from caches import LABELS, acts, remove
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from replays import ONE, caches_over, fill, settled, until

from edge_app.cache.disk import DiskCache
from edge_app.cache.replay_cache import ReplayCache
from edge_app.cache.sampling import POLICIES
from emo.errors import CacheError


@pytest.fixture
def make(disk):
    with caches_over(disk) as one:
        yield one


calls = st.lists(
    st.tuples(st.just("put"), st.integers(0, 11))
    | st.just(("step", 0))
    | st.tuples(st.just("evict"), st.integers(0, 11)),
    max_size=40,
)


@pytest.mark.parametrize("sampling", POLICIES)
@given(todo=calls, slots=st.integers(1, 6), seed=st.integers(0, 3))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_threads_timing_changes_what_is_sampled(sampling, todo, slots, seed, tmp_path_factory):
    seen = []
    for prefetch in (False, True):
        with DiskCache(tmp_path_factory.mktemp("cache")) as disk:
            real = disk.get

            def slow(*key, real=real):
                time.sleep(random.choice([0, 0, 0.001]))
                return real(*key)

            disk.get = slow
            cache = ReplayCache(disk, slots * ONE, seed, sampling=sampling, prefetch=prefetch)
            fill(cache, 8)
            samples = []
            for version, (call, batch) in enumerate([*todo, *[("step", 0)] * 6], 1):
                if call == "put":
                    cache.put("d", batch, version, acts(100 * version + batch), LABELS)
                elif call == "evict":
                    remove(disk, "d", batch)
                    disk.on_evict("d", batch)
                else:
                    step = [sample for sample in (cache.sample() for _ in range(4)) if sample]
                    for sample in step:
                        cache.trained(sample, sample.batch % 3)
                    samples += [(s.batch, s.version, s.weight, s.activations.mean().item()) for s in step]
            cache.close()
            seen.append((samples, cache.state()))
    assert seen[0] == seen[1]
    for batch, version, _, value in seen[0][0]:
        assert value == 100 * version + batch


def test_what_was_planned_is_there_when_it_is_needed(make, disk, monkeypatch):
    cache = make(6)
    fill(cache, 24)
    for _ in range(24):
        cache.sample()
    settled(cache)
    before = cache.stats()
    monkeypatch.setattr(disk, "get", None)  # whoever reads now fails
    cache.close()
    planned = [cache.sample() for _ in range(4)]
    assert all((sample.activations == sample.batch).all() for sample in planned)
    after = cache.stats()
    assert after["memory_hits"] == before["memory_hits"] + 4
    assert after["starved_us"] == before["starved_us"]


def test_after_a_restart_new_batches_are_fetched_ahead_as_well(make, disk, monkeypatch):
    fill(make(), 10)
    cache = make(4)
    assert cache.sample().batch == 9
    settled(cache)
    monkeypatch.setattr(disk, "get", None)
    cache.close()
    assert [cache.sample().batch for _ in range(3)] == [8, 7, 6]


def test_a_batch_that_comes_takes_the_place_of_what_is_planned_later(make, disk, monkeypatch):
    cache = make(3, prefetch=False)
    fill(cache, 12)
    while cache.stats()["fresh"]:
        cache.sample()
    for _ in range(20):
        cache.sample()
    cache.put("d", 50, 0, acts(50), LABELS)
    monkeypatch.setattr(disk, "get", None)
    assert cache.sample().batch == 50


def test_training_waits_for_the_thread_that_reads_the_very_batch_it_needs(make, disk, monkeypatch):
    fill(make(), 2)
    cache = make(2)
    reads, hanging, go, real = Counter(), threading.Event(), threading.Event(), disk.get

    def hang(device, batch):
        reads[batch] += 1
        if batch == 0:
            hanging.set()
            assert go.wait(20)
        return real(device, batch)

    monkeypatch.setattr(disk, "get", hang)
    assert cache.sample().batch == 1
    assert hanging.wait(20)  # the third thread reads batch 0
    found = []
    trainer = threading.Thread(target=lambda: found.append(cache.sample()))
    trainer.start()
    trainer.join(0.05)
    assert trainer.is_alive()
    go.set()
    trainer.join(20)
    assert found[0].batch == 0
    assert reads[0] == 1
    assert cache.stats()["starved_us"] > 0


def test_an_error_of_the_disk_is_told_to_training_and_the_thread_goes_on_after_it(make, disk, monkeypatch):
    cache = make(3)
    fill(cache, 9)
    real, reads = disk.get, []

    def broken(*key):
        reads.append(threading.current_thread().name)
        raise CacheError("no disk")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "get", broken)
        for _ in range(3):
            cache.sample()
        cache._memory.clear()
        with pytest.raises(CacheError, match="no disk"):
            cache.sample()
        until(lambda: "prefetch" in reads)
    assert disk.get == real
    before = cache.stats()["prefetched"]
    until(lambda: cache.sample() and cache.stats()["prefetched"] > before)


def test_the_thread_starts_when_it_is_needed_and_ends_with_the_cache(make, disk):
    before = set(threading.enumerate())

    def running():
        return [each for each in threading.enumerate() if each.name == "prefetch" and each not in before]

    cache = make(3)
    fill(cache, 3)
    for _ in range(9):
        cache.sample()
    assert not running()
    fill(cache, 9, version=1)
    for _ in range(9):
        cache.sample()
    assert running()
    cache.close()
    cache.close()
    assert not running()
    assert cache.sample()


def test_what_no_slot_takes_is_not_read_over_and_over(make, disk, monkeypatch):
    cache = make(5)
    fill(cache, 6)
    for batch in (6, 7):
        cache.put("d", batch, 0, acts(batch, (4, 5)), LABELS)
    reads, real = Counter(), disk.get

    def counted(*key):
        reads[threading.current_thread().name, key[1]] += 1
        return real(*key)

    monkeypatch.setattr(disk, "get", counted)
    for _ in range(60):
        cache.sample()
        settled(cache)
    assert (reads["prefetch", 6], reads["prefetch", 7]) == (1, 1)


def test_an_older_version_on_the_disk_is_served_and_not_read_over_and_over(make, disk, monkeypatch):
    """As after a sync that failed: the newer one was lost."""
    fill(make(), 3, version=1)
    cache = make(3)
    for batch in range(3):
        cache._sampler.add(("d", batch), 2)
    reads, real = Counter(), disk.get
    monkeypatch.setattr(disk, "get", lambda *key: reads.update([key[1]]) or real(*key))
    for _ in range(6):
        assert cache.sample().version == 1
        settled(cache)
    assert reads.total() <= 12
