"""Receiving and training at the same time: nobody waits, and nothing is stale."""

import json
import os
import threading
import time

import numpy as np
import pytest
import torch
from caches import LABELS, acts, remove
from replays import ONE, caches_over, fill

from edge_app.cache.disk import DiskCache
from edge_app.cache.replay_cache import ReplayCache


@pytest.fixture
def make(disk):
    with caches_over(disk) as one:
        yield one


def test_a_version_that_comes_while_the_older_is_read_stays_fresh(make, disk, monkeypatch):
    cache = make(1, prefetch=False)
    cache.put("d", 0, 1, acts(1), LABELS)
    cache.put("d", 1, 1, acts(1), LABELS)
    cache.sample()
    real = disk.get

    def overtaken(device, batch):
        entry = real(device, batch)
        monkeypatch.undo()
        cache.put("d", 0, 2, acts(2), LABELS)
        return entry

    monkeypatch.setattr(disk, "get", overtaken)
    assert (cache.sample().batch, cache.stats()["fresh"]) == (0, 1)
    sample = cache.sample()
    assert (sample.batch, sample.version, float(sample.activations[0, 0, 0, 0])) == (0, 2, 2)


def test_a_version_that_comes_while_the_older_is_copied_is_not_overwritten_by_it(make, monkeypatch):
    cache = make(4, prefetch=False)
    real = cache._memory.write

    def overtaken(*args):
        monkeypatch.undo()
        cache.put("d", 0, 2, acts(2), LABELS)
        real(*args)

    monkeypatch.setattr(cache._memory, "write", overtaken)
    cache.put("d", 0, 1, acts(1), LABELS)
    for _ in range(3):
        sample = cache.sample()
        assert (sample.version, float(sample.activations[0, 0, 0, 0])) == (2, 2)
    assert cache._memory._taken() == 1


def test_what_was_read_of_the_run_before_does_not_come_back_under_the_same_version(make, disk, monkeypatch):
    fill(make(), 2)
    cache = make(1, prefetch=False)
    cache.sample()
    real = disk.get

    def overtaken(device, batch):
        entry = real(device, batch)
        monkeypatch.undo()
        cache.begin("another")
        cache.put("d", 0, 0, acts(77), LABELS)
        cache._memory.drop(("d", 0))  # as when other batches had pushed it out
        return entry

    monkeypatch.setattr(disk, "get", overtaken)
    cache.sample()
    for _ in range(3):
        assert (cache.sample().activations == 77).all()


def test_receiving_and_training_do_not_wait_for_each_others_disk_or_copies(make, disk, monkeypatch):
    """A put that hangs in its sync or its copy stops no sample, and a sample that hangs in its read or copy no put."""
    cache = make(4, prefetch=False)
    fill(cache, 3)
    calls = {
        "put": lambda: cache.put("d", 1, time.monotonic_ns(), acts(1), LABELS),
        "sample": cache.sample,
    }
    for stuck, other, owner, name in (
        ("put", "sample", os, "fsync"),
        ("put", "sample", cache._memory, "write"),
        ("sample", "put", disk, "get"),
        ("sample", "put", cache._memory, "write"),
        ("sample", "put", cache._memory, "read"),
    ):
        hanging, go, real = threading.Event(), threading.Event(), getattr(owner, name)
        if stuck == "sample":
            cache.put("d", 0, time.monotonic_ns(), acts(0), LABELS)
            if name != "read":
                cache._memory.drop(("d", 0))

        def hang(*args, real=real, hanging=hanging, go=go):
            if not hanging.is_set():
                hanging.set()
                assert go.wait(20)
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, hang)
            thread = threading.Thread(target=calls[stuck])
            thread.start()
            assert hanging.wait(20)
            assert calls[other]()
            assert cache.stats()
            assert cache.state()
            assert thread.is_alive()
            go.set()
            thread.join(20)
            assert not thread.is_alive()


@pytest.mark.parametrize("sampling", ["mixed", "importance"])
def test_threads_that_hammer_it_never_see_anything_stale(tmp_path, sampling):
    """Until each has had its turns. An element says which run, version and batch it is of."""
    with DiskCache(tmp_path, durability="none") as disk:
        cache = ReplayCache(disk, 7 * ONE, 0, sampling=sampling, memory_share=0.5)
        stop, errors, run, samples, looks = threading.Event(), [], 0, 0, 0

        def receive():
            nonlocal run
            chance, puts = np.random.default_rng(0), 0
            version = 0
            while not stop.is_set():
                version += 1
                batch = int(chance.integers(30))
                shape = (4 - batch % 2, 3, 2, 2)
                value = batch + 30 * version + 30_000 * (run % 500)
                cache.put("d", batch, version, acts(value, shape), LABELS[: shape[0]] + value)
                puts += 1
                if puts % 7 == 0:
                    key = ("d", int(chance.integers(30)))
                    remove(disk, *key)
                    disk.on_evict(*key)
                if puts % 97 == 0:
                    cache.begin(f"run-{run + 1}")
                    run, version = run + 1, 0

        def train():
            nonlocal samples
            while not stop.is_set():
                before = run
                step = [sample for sample in (cache.sample() for _ in range(4)) if sample]
                time.sleep(0)
                for sample in step:
                    samples += 1
                    value = int(sample.activations[0, 0, 0, 0])
                    assert len(sample.labels) == 4 - sample.batch % 2
                    assert (sample.activations == value).all()
                    assert (sample.labels == torch.from_numpy(LABELS[: len(sample.labels)]) + value).all()
                    assert value % 30_000 == sample.batch + 30 * sample.version
                    assert value // 30_000 >= before
                    cache.trained(sample, sample.batch % 5)

        def look():
            nonlocal looks
            while not stop.wait(0.001):  # without a pause it would keep the interpreter from the others
                looks += 1
                assert cache.stats()["memory_bytes"] <= 7 * ONE
                assert sum(cache.ages(100).values()) <= 30
                json.dumps(cache.state())

        def guarded(target):
            try:
                target()
            except BaseException as error:
                errors.append(error)
                raise
            finally:
                stop.set()

        threads = [threading.Thread(target=guarded, args=(target,)) for target in (receive, train, look)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60  # a loaded machine may need it
        while not stop.wait(0.1) and time.monotonic() < deadline:
            if run >= 3 and samples >= 200 and looks >= 20:
                stop.set()
        stop.set()
        for thread in threads:
            thread.join(20)
        cache.close()
        assert not errors
        assert run >= 3
        assert samples >= 200
        assert looks >= 20
        assert cache._memory._taken() == len(cache._memory)  # no slot is lost
        for key in list(cache._memory._held):
            assert cache._sampler.version(key) == cache._memory._held[key].version
