"""The disk's budget: never exceeded, in fair shares a device, in the policy's order; and on disk as in the books."""

import math
import os

import pytest
from caches import LABELS, ONE, acts, batch_files, everything, size_of, unsynced
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_app.cache.catalogue import Catalogue
from edge_app.cache.disk import DiskCache
from edge_app.cache.eviction import POLICIES
from edge_app.cache.index import Row
from emo.errors import CacheError

BUDGET = 100

_keys = st.tuples(st.sampled_from("aaab"), st.integers(0, 5)) | st.tuples(st.sampled_from("bcd"), st.integers(0, 1))
_ops = st.lists(
    st.one_of(
        st.tuples(st.just("put"), _keys, st.integers(0, 3), st.just(20)),
        st.tuples(st.just("put"), _keys, st.integers(0, 3), st.sampled_from([10, 15, 30]) | st.integers(1, 120)),
        st.tuples(st.just("loss"), _keys, st.floats(0, 9) | st.sampled_from([math.nan, -1.0])),
        st.tuples(st.just("forget"), _keys),
        st.tuples(st.just("begin"), st.none()),
        st.tuples(st.just("end"), st.sets(_keys, max_size=2)),
    ),
    max_size=60,
)


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    unsynced(monkeypatch)


def numbers(disk):
    """Of the batches that are there."""
    keys = disk.keys()
    return sorted(batch for _, batch in keys)


class Books:
    """What a catalogue should hold, kept in the plainest way: key -> (version, size, turn, loss)."""

    def __init__(self):
        self.rows, self.turn = {}, 0

    def put(self, key, version, size):
        self.turn += 1
        self.rows[key] = (version, size, self.turn, math.inf)

    def loss(self, key, loss):
        if key in self.rows and math.isfinite(loss):
            self.rows[key] = (*self.rows[key][:3], max(loss, 0.0))

    def order(self, policy, key):
        """What goes first is least."""
        version, _, turn, loss = self.rows[key]
        return {"oldest": version, "fifo": turn, "lowest-loss": (loss, version if loss == math.inf else 0)}[policy]

    def held(self):
        total = {}
        for (device, _), (_, size, *_) in self.rows.items():
            total[device] = total.get(device, 0) + size
        return total


@pytest.mark.parametrize("policy", POLICIES)
@given(_ops)
@settings(max_examples=150)
def test_budget_fair_shares_and_order(policy, ops):
    catalogue, books = Catalogue(POLICIES[policy], BUDGET), Books()
    for what, key, *more in ops:
        if what == "loss":
            catalogue.trained(key, *more)
            books.loss(key, *more)
        elif what == "forget":
            assert bool(catalogue.forget(key)) == (books.rows.pop(key, None) is not None)
        elif what == "put":
            step, size = more
            old = books.rows.get(key)
            version = step + (old[0] + 1 if old else 0)
            before = books.held()
            devices = len({*before, key[0]})
            entered = catalogue.enter(key, Row(version, 0, size), settled=True)
            if entered is None:
                assert size > BUDGET / devices  # more than its share, and what others hold is within theirs
                assert books.held() == catalogue.index.held
                continue
            books.put(key, version, size)
            victims = entered.evicted
            assert key not in victims
            for device in {device for device, _ in victims}:
                mine = [victim for victim in victims if victim[0] == device]
                assert device == key[0] or before[device] > BUDGET / devices
                left = [k for k in books.rows if k[0] == device and k not in victims and k != key]
                assert all(books.order(policy, v) <= books.order(policy, k) for v in mine for k in left)
            needed = sum(books.held().values()) - BUDGET
            freed = [books.rows.pop(victim)[1] for victim in victims]
            assert sum(freed[:-1]) < max(needed, 1) <= max(sum(freed), 1)  # no more than it takes
        assert catalogue.index.held == books.held()
        assert catalogue.index.total == sum(books.held().values()) <= BUDGET
        assert sorted(catalogue.index.keys()) == sorted(books.rows)


@given(_ops, st.sampled_from(list(POLICIES)))
@settings(max_examples=300)
def test_in_groups_every_file_is_accounted_for_and_what_was_synced_stays(ops, policy):
    """`there`: all files, as (key, version) -> size; `synced`: what was reported, until it goes as a whole."""
    catalogue = Catalogue(POLICIES[policy], BUDGET)
    there, synced, syncing, version = {}, {}, {}, 0
    for what, key, *more in [*ops, ("end", ()), ("begin", None), ("end", ())]:
        gone, dropped = [], []
        if what == "put":
            version += 1
            row = Row(version, 0, more[1])
            entered = catalogue.enter(key, row, settled=False)
            if entered is not None:
                there[key, version] = row.size
                gone, dropped = entered
                assert key not in dropped
        elif what == "forget":
            gone, dropped = catalogue.forget(key), [key]
        elif what == "begin" and not syncing:
            syncing = {k: row.version for k, row in catalogue.begin_sync().items()}
        elif what == "end" and syncing:
            kept = {k for k, reached in syncing.items() if k not in key or catalogue.index.get(k).version > reached}
            before = {k: catalogue.index.get(k) for k in kept}
            gone = catalogue.end_sync(key)  # those fail
            assert before == {k: catalogue.index.get(k) for k in kept}
            synced |= {k: reached for k, reached in syncing.items() if k not in key}
            syncing = {}
        for k in dropped:
            synced.pop(k, None)
            syncing.pop(k, None)
        for k, row in gone:
            assert there.pop((k, row.version)) == row.size
        assert catalogue.index.total == sum(there.values()) <= BUDGET
        for k, least in synced.items():
            assert (k, least) in there
            assert catalogue.index.get(k).version >= least
        newest = catalogue.index.keys()
        assert all((k, catalogue.index.get(k).version) in there for k in newest)
        assert len(there) <= len(newest) + 2 * catalogue.stats()["unsynced"]
    assert {(k, catalogue.index.get(k).version) for k in newest} == there.keys()
    assert {k: catalogue.index.get(k).version for k in newest} == synced


def test_a_chatty_device_pushes_out_its_own(tmp_path):
    evicted = []
    with DiskCache(tmp_path, 9 * ONE) as disk:
        disk.on_evict = lambda *key: evicted.append(key)
        for batch in range(3):
            disk.put("quiet", batch, 0, acts(0), LABELS)
        for batch in range(50):
            assert disk.put("chatty", batch, 100 + batch, acts(0), LABELS)
            assert disk.stats()["bytes"] == size_of(tmp_path / "batches") <= 9 * ONE
        assert {("quiet", 0), ("quiet", 1), ("quiet", 2)} <= set(disk.keys())
        assert evicted == [("chatty", batch) for batch in range(disk.stats()["evicted"])]
        assert sorted(evicted + disk.keys()) == sorted(
            [("quiet", batch) for batch in range(3)] + [("chatty", batch) for batch in range(50)]
        )
        assert disk.stats()["entries"] == 9


@pytest.mark.parametrize("durability", ["batch", "group", "none"])
def test_the_budget_holds_on_the_disk_also_while_older_versions_wait(tmp_path, durability):
    for fits in (1, 1.5, 2, 3.2):
        root = tmp_path / str(fits)
        budget = int(fits * ONE)
        with DiskCache(root, budget, durability=durability) as disk:
            for version in range(15):
                batch = (0, 0, 1, 0, 2)[version % 5]
                assert disk.put("d", batch, version, acts(version), LABELS)
                assert disk.get("d", batch).version == version
                assert size_of(root / "batches", root / "damaged") == disk.stats()["bytes"] <= budget
                if version % 2:
                    disk.flush()


def test_larger_than_the_budget_or_than_a_share_that_others_keep_to_is_refused(tmp_path):
    small, large = acts(0), acts(0, (4, 900))
    with DiskCache(tmp_path, 18_000) as disk:
        with pytest.raises(CacheError, match=r"budget of 18000 bytes has no room for its .*raise cache.budget_mib"):
            disk.put("d", 0, 0, acts(0, (4, 2000)), LABELS)
        for device in ("a", "b"):
            disk.put(device, 0, 0, small, LABELS)
            disk.put(device, 1, 0, small, LABELS)
        with pytest.raises(CacheError, match="batch 0 of c is not stored, all others are kept"):
            disk.put("c", 0, 0, large, LABELS)
        assert len(disk.keys()) == 4
        assert (disk.stats()["refused"], disk.stats()["evicted"]) == (2, 0)
        assert size_of(tmp_path / "batches") == disk.stats()["bytes"]
        assert disk.put("c", 0, 0, small, LABELS)


@pytest.mark.parametrize(("policy", "left", "then"), [("oldest", [0, 2, 4], [2, 4, 8]), ("fifo", [1, 3, 4], [1, 4, 8])])
def test_a_start_with_a_smaller_budget_evicts_and_goes_on_in_the_same_order(tmp_path, policy, left, then):
    versions = {2: 7, 0: 5, 3: 1, 4: 6, 1: 2}  # in the order of storing
    with DiskCache(tmp_path) as disk:
        for turn, (batch, version) in enumerate(versions.items()):
            disk.put("d", batch, version, acts(0), LABELS)
            (path,) = (tmp_path / "batches" / "d" / "00").glob(f"{batch}-*")
            os.utime(path, ns=(0, 10**18 + turn))  # a clock that is fine enough
    with DiskCache(tmp_path, 3 * ONE, policy) as disk:
        assert numbers(disk) == left
        assert disk.stats()["evicted"] == 2
        assert len(batch_files(tmp_path)) == 3
        disk.put("d", 8, 9, acts(0), LABELS)
        assert numbers(disk) == then


def test_what_was_learnt_best_goes_first_and_a_new_version_was_not_learnt(tmp_path):
    with DiskCache(tmp_path, 4 * ONE, "lowest-loss") as disk:
        for batch in range(4):
            disk.put("d", batch, 0, acts(0), LABELS)
        for batch, loss in ((0, 2.0), (1, 3.0), (2, 0.5), (9, 1.0), (1, 0.25)):
            disk.note_loss("d", batch, loss)
        disk.note_loss("d", 3, math.nan)
        disk.put("d", 1, 1, acts(0), LABELS)
        for batch, left in ((4, [0, 1, 3, 4]), (5, [1, 3, 4, 5]), (6, [1, 4, 5, 6])):
            disk.put("d", batch, 2, acts(0), LABELS)
            assert numbers(disk) == left


def test_what_came_again_is_judged_by_its_newest_version(tmp_path):
    with DiskCache(tmp_path, 4 * ONE) as disk:
        for batch in range(5):
            disk.put("d", batch, batch, acts(0), LABELS)
        disk.put("d", 1, 9, acts(0), LABELS)
        for batch, left in ((5, [1, 3, 4, 5]), (6, [1, 4, 5, 6])):
            disk.put("d", batch, 10, acts(0), LABELS)
            assert numbers(disk) == left


def test_what_was_set_aside_goes_before_any_batch(tmp_path):
    with DiskCache(tmp_path) as disk:
        for batch in range(4):
            disk.put("d", batch, 0, acts(0), LABELS)
        for path in batch_files(tmp_path)[:2]:
            path.write_bytes(path.read_bytes()[:-1] + b"x")
        assert [disk.get("d", batch) is None for batch in range(4)] == [True, True, False, False]
    assert len(everything(tmp_path / "damaged")) == 2
    with DiskCache(tmp_path, 4 * ONE) as disk:
        assert disk.put("d", 0, 0, acts(0), LABELS)
        assert size_of(tmp_path / "batches", tmp_path / "damaged") <= 4 * ONE
        assert everything(tmp_path / "damaged") == []
        assert disk.stats()["evicted"] == 0
        assert disk.put("d", 1, 0, acts(0), LABELS)
    assert len(batch_files(tmp_path)) == 4


def test_what_hears_of_an_eviction_may_ask_the_cache(tmp_path):
    heard = []
    with DiskCache(tmp_path, 2 * ONE) as disk:
        disk.on_evict = lambda *key: heard.append((key, disk.version(*key), disk.stats()["entries"]))
        for batch in range(3):
            disk.put("d", batch, batch, acts(0), LABELS)
    assert heard == [(("d", 0), None, 2)]
