"""Level 2, durability "group": what a flush has reported outlives a power cut, and nothing is left over."""

import errno
import os
import random
from pathlib import Path

import numpy as np
import pytest
from caches import (
    KEYS,
    LABELS,
    ONE,
    Power,
    acts,
    batch_files,
    drop,
    fail_at,
    remove,
    size_of,
    unsynced,
    version_of,
)

from edge_app.cache.disk import DiskCache
from emo.errors import CacheError


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    unsynced(monkeypatch)


def test_a_flush_that_fails_goes_back_to_what_was_synced(tmp_path, monkeypatch):
    with DiskCache(tmp_path, durability="group") as disk:
        for batch in range(4):
            disk.put("d", batch, 1, acts(1), LABELS)
        disk.flush()
        for batch in range(2, 6):
            disk.put("d", batch, 2, acts(2), LABELS)
        real, doomed = (
            os.fsync,
            {str(path) for path in batch_files(tmp_path) if path.name[:4] in ("3-2-", "5-2-")},
        )

        def fsync(handle):
            if str(Path(f"/proc/self/fd/{handle}").readlink()) in doomed:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(handle)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            with pytest.raises(CacheError, match=r"2 of 4 batches could not be synced: Input/output error"):
                disk.flush()
        assert [version_of(disk, ("d", batch)) for batch in range(6)] == [1, 1, 2, 1, 2, 0]
        assert disk.stats()["unsynced"] == 0
        assert disk.stats()["bytes"] == size_of(tmp_path / "batches")
        assert len(batch_files(tmp_path)) == 5
        assert disk.put("d", 3, 2, acts(2), LABELS)  # it may come again
        disk.flush()
        assert version_of(disk, ("d", 3)) == 2


def test_in_a_group_no_version_is_left_over(tmp_path):
    with DiskCache(tmp_path, durability="group") as disk:
        disk.put("d", 0, 1, acts(1), LABELS)
        disk.flush()
        for version in range(2, 9):
            disk.put("d", 0, version, acts(version), LABELS)
            disk.put("d", 1, version, acts(version), LABELS)
            assert [path.name[:4] for path in batch_files(tmp_path)] == [
                "0-1-",
                f"0-{version}-",
                f"1-{version}-",
            ]
            assert disk.stats()["bytes"] == size_of(tmp_path / "batches")
            assert disk.stats()["unsynced"] == 2
        disk.flush()
        assert [path.name[:4] for path in batch_files(tmp_path)] == ["0-8-", "1-8-"]
        disk.put("d", 0, 9, acts(9), LABELS)
        remove(disk, "d", 0)
        assert len(batch_files(tmp_path)) == 1
        assert disk.stats()["unsynced"] == 0


def test_a_version_that_comes_during_a_flush_waits_for_the_next(tmp_path, monkeypatch):
    """And what the flush has reported stays until then."""
    with DiskCache(tmp_path, durability="group") as disk:
        for version in (1, 2):
            disk.put("d", 0, version, acts(version), LABELS)
            disk.put("d", 1, version, acts(version), LABELS)
        real = os.fsync

        def fsync(handle):
            if disk.version("d", 0) == 2:
                disk.put("d", 0, 3, acts(3), LABELS)
                disk.put("d", 0, 4, acts(4), LABELS)
                remove(disk, "d", 1)
            real(handle)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            disk.flush()
        assert [path.name[:4] for path in batch_files(tmp_path)] == ["0-2-", "0-4-"]
        assert version_of(disk, ("d", 0)) == 4
        assert disk.stats()["unsynced"] == 1
        with monkeypatch.context() as patch:
            fail_at(patch, 2)
            with pytest.raises(CacheError):
                disk.flush()
        assert version_of(disk, ("d", 0)) == 2
        assert disk.stats()["bytes"] == size_of(tmp_path / "batches")


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("durability", ["batch", "group"])
def test_a_power_cut_takes_nothing_that_was_reported(tmp_path, monkeypatch, durability, seed):
    rng, root = random.Random(seed), tmp_path / "cache"
    root.mkdir()
    power = Power(monkeypatch, root, tmp_path / "saved", rng)
    reported, latest = dict.fromkeys(KEYS, 0), 0
    budget = rng.choice([None, 9 * ONE])  # more than all of them
    for _ in range(3):
        disk = DiskCache(root, budget, durability=durability)
        seen = {key: version_of(disk, key) for key in KEYS}
        assert all(reported[key] <= seen[key] <= latest for key in KEYS)
        stored = {key: version for key, version in seen.items() if version}  # whoever offers it again is told: stored
        for _ in range(rng.randrange(12)):
            latest += 1
            key = rng.choice(KEYS)
            assert disk.put(*key, latest, acts(latest), LABELS)
            stored[key] = latest
            if durability == "batch" or rng.random() < 0.3:
                disk.flush()
                reported |= stored
        if durability == "batch":
            reported |= stored
        drop(disk)
        if rng.random() < 0.7:
            power.cut()


def test_what_a_killed_process_left_unsynced_is_synced_before_it_is_called_stored(tmp_path, monkeypatch):
    root = tmp_path / "cache"
    root.mkdir()
    power = Power(monkeypatch, root, tmp_path / "saved", random.Random(0))
    disk = DiskCache(root, durability="group")
    for batch in range(9):
        disk.put("d", batch, 1, acts(1), LABELS)
    drop(disk)
    disk = DiskCache(root, durability="group")
    assert not disk.put("d", 0, 1, acts(1), LABELS)  # sent again, for nobody had told that it is there
    disk.flush()
    drop(disk)
    power.cut()
    with DiskCache(root) as disk:
        assert [version_of(disk, ("d", batch)) for batch in range(9)] == [1] * 9


def test_content_is_what_was_put_whatever_comes_between(tmp_path):
    """Random versions, sizes and flushes; then a start."""
    rng = np.random.default_rng(3)
    newest = {}
    with DiskCache(tmp_path, durability="group") as disk:
        for version in range(60):
            batch = int(rng.integers(6))
            newest[batch] = rng.standard_normal((int(rng.integers(1, 9)), 5), np.float32)
            disk.put("d", batch, version, newest[batch], np.arange(len(newest[batch])))
            if rng.random() < 0.2:
                disk.flush()
            for each, wanted in newest.items():
                np.testing.assert_array_equal(disk.get("d", each).activations, wanted)
    with DiskCache(tmp_path) as disk:
        for each, wanted in newest.items():
            np.testing.assert_array_equal(disk.get("d", each).activations, wanted)
    assert len(batch_files(tmp_path)) == len(newest)
