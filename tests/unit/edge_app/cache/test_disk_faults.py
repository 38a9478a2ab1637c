"""Level 2 on a disk that is full, fails, or loses its power: what was reported stored is there, whole."""

import errno
import os

import pytest
from caches import KEYS, LABELS, ONE, acts, drop, everything, fail_at, size_of, unsynced, version_of

from edge_app.cache.disk import DURABILITIES, DiskCache
from emo.errors import CacheError


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    unsynced(monkeypatch)


@pytest.mark.parametrize(("failure", "budget"), [(errno.ENOSPC, None), (errno.EIO, None), (errno.EDQUOT, 4 * ONE)])
@pytest.mark.parametrize("durability", DURABILITIES)
def test_whatever_step_fails_every_batch_is_old_or_new_and_no_older_than_reported(
    tmp_path, monkeypatch, durability, failure, budget
):
    """One call after the other fails, of those that two puts and a flush make."""
    number, failed, done = 0, [], False
    while not done:
        number += 1
        root = tmp_path / str(number)
        disk = DiskCache(root, budget, durability=durability)
        for key in KEYS[:2]:
            disk.put(*key, 1, acts(1), LABELS)
        disk.flush()
        reported = {KEYS[0]: 1, KEYS[1]: 1, KEYS[2]: 0}
        stored, raised = [], 0
        with monkeypatch.context() as patch:
            calls = fail_at(patch, number, failure)
            for key in (KEYS[0], KEYS[2]):  # the second needs its folders first
                try:
                    assert disk.put(*key, 2, acts(2), LABELS)
                    stored.append(key)
                except CacheError as error:
                    assert os.strerror(failure) in str(error)  # noqa: PT017 - not every one raises
                    raised += 1
            try:
                disk.flush()
                reported |= dict.fromkeys(stored, 2)
            except CacheError as error:
                assert os.strerror(failure) in str(error)  # noqa: PT017
                raised += 1
        done = len(calls) < number
        failed += [] if done else [calls[number - 1]]
        assert raised == (0 if done else 1) or failed[-1] == "mkdir"  # of a folder that is there
        assert disk.stats()["refused"] == (raised if len(stored) < 2 else 0)
        now = {key: version_of(disk, key) for key in KEYS}
        assert all(now[key] >= reported[key] for key in KEYS)
        assert disk.stats()["bytes"] == size_of(root / "batches")
        drop(disk)
        with DiskCache(root, budget, durability=durability) as again:
            assert {key: version_of(again, key) for key in KEYS} == now
            assert again.put("d", 1, 2, acts(2), LABELS)  # and it goes on
            assert again.stats()["damaged"] == 0
        assert len(everything(root)) == sum(map(bool, now.values())) + 1
    assert now == {KEYS[0]: 2, KEYS[1]: 1, KEYS[2]: 2}
    assert {"open", "write", "rename", "mkdir"} <= set(failed)
    assert ("fsync" in failed) == (durability != "none")


def test_each_put_is_on_the_disk_before_the_older_one_goes(disk, tmp_path, monkeypatch):
    disk.put("d", 0, 1, acts(1), LABELS)
    with monkeypatch.context() as patch:
        calls = fail_at(patch, 0)
        remove = os.unlink
        patch.setattr(os, "unlink", lambda *path: (calls.append("unlink"), remove(*path)))
        disk.put("d", 0, 2, acts(2), LABELS)
    assert [call for call in calls if call != "write"] == [
        "open",
        "fsync",
        "rename",
        "open",
        "fsync",
        "unlink",
    ]


def test_a_disk_that_fills_up_halfway_through_a_write(disk, tmp_path, monkeypatch):
    disk.put("d", 0, 1, acts(1), LABELS)
    before, write, room = everything(tmp_path), os.write, [2000]

    def filling(handle, data):
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(handle, bytes(data)[: min(700, room[0])])
        room[0] -= done
        return done

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", filling)
        with pytest.raises(CacheError, match=r"disk is full .* free space, or set cache.budget_mib"):
            disk.put("d", 0, 2, acts(2), LABELS)
        assert everything(tmp_path) == before
        assert disk.get("d", 0).version == 1
        assert disk.stats()["refused"] == 1
        room[0] = 99999  # there is room again
        assert disk.put("d", 0, 2, acts(2), LABELS)
    assert version_of(disk, ("d", 0)) == 2


def test_begin_needs_no_room_on_a_full_disk_and_may_be_tried_again(tmp_path, monkeypatch):
    for number in range(1, 99):
        with DiskCache(tmp_path / str(number)) as disk:
            disk.begin("one")
            disk.put("d", 0, 1, acts(1), LABELS)
            with monkeypatch.context() as patch:
                calls = fail_at(patch, number, errno.ENOSPC)
                try:
                    disk.begin("two")
                except CacheError as error:
                    assert "cannot be cleared" in str(error)  # noqa: PT017
            if len(calls) < number:
                break
            assert disk.keys() == []
            disk.begin("two")
            assert not disk.begin("two")
            assert disk.keys() == []
            assert disk.put("d", 0, 0, acts(0), LABELS)
        with DiskCache(tmp_path / str(number)) as disk:
            assert not disk.begin("two")
            assert version_of(disk, ("d", 0)) == 0
            assert disk.keys() == [("d", 0)]
    assert {"rename", "mkdir", "write", "fsync"} <= set(calls)


def test_a_file_that_cannot_be_read_is_an_error_and_stays(disk, tmp_path, monkeypatch):
    disk.put("d", 0, 1, acts(1), LABELS)
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.open", _refuse(errno.EMFILE))
        with pytest.raises(CacheError, match="Too many open files"):
            disk.get("d", 0)
    assert version_of(disk, ("d", 0)) == 1
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.open", _refuse(errno.EIO))
        assert disk.get("d", 0) is None  # a bad sector: gone for good
    assert disk.stats()["damaged"] == 1


def _refuse(number):
    def refuse(*_args, **_options):
        raise OSError(number, os.strerror(number))

    return refuse
