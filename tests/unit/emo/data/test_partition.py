"""Shares of a dataset: disjoint, complete, equal, seeded."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emo.config import Partition
from emo.data import partition
from emo.errors import PartitionError

LABELS = np.repeat(np.arange(10), 100)

labels_lists = st.lists(st.integers(0, 6), min_size=1, max_size=120).map(lambda v: np.array(v, np.int64))
seeds = st.integers(0, 2**32)
alphas = st.one_of(st.floats(1e-3, 1e3), st.sampled_from([5e-324, 1e-300, 1e-12, 1e12, 1e300]))


def check(shares, labels, devices):
    """Disjoint, complete, sizes that differ by at most one, ascending int64."""
    assert len(shares) == devices
    assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(len(labels)))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    for share in shares:
        assert share.dtype == np.int64
        assert (np.diff(share) > 0).all()


@given(labels_lists, st.data(), alphas, seeds)
@settings(max_examples=150, deadline=None)
def test_dirichlet_deals_all_samples_once(labels, data, alpha, seed):
    devices = data.draw(st.integers(1, len(labels)))
    shares = partition.dirichlet(labels, devices, alpha, seed)
    check(shares, labels, devices)
    again = partition.dirichlet(labels, devices, alpha, seed)
    assert all(np.array_equal(a, b) for a, b in zip(shares, again, strict=True))


@given(labels_lists, st.data(), alphas, seeds)
@settings(max_examples=100, deadline=None)
def test_dirichlet_per_device_gives_sizes_as_asked(labels, data, alpha, seed):
    devices = data.draw(st.integers(1, len(labels)))
    per_device = data.draw(st.integers(1, len(labels) // devices))
    shares = partition.dirichlet(labels, devices, alpha, seed, per_device)
    rows = np.concatenate(shares)
    assert [len(share) for share in shares] == [per_device] * devices
    assert len(np.unique(rows)) == len(rows)
    assert rows.max() < len(labels)


@given(labels_lists, st.data(), seeds)
@settings(max_examples=100, deadline=None)
def test_iid_and_shards_deal_all_samples_once(labels, data, seed):
    devices = data.draw(st.integers(1, len(labels)))
    check(partition.iid(labels, devices, seed), labels, devices)
    pieces = data.draw(st.integers(1, len(labels) // devices))
    check(partition.shards(labels, devices, seed, pieces), labels, devices)


def classes(shares):
    return np.mean([len(np.unique(LABELS[share])) for share in shares])


def test_alpha_sets_how_much_devices_differ():
    # Half of the samples, so that no device has to take what is left.
    low, middle, high = (
        classes(partition.dirichlet(LABELS, 10, alpha, seed=0, per_device=50)) for alpha in (1e-3, 3, 1e5)
    )
    assert low < 2
    assert low + 1 < middle < high - 1
    assert high == 10


def test_dirichlet_follows_the_prior():
    labels = np.repeat([0, 1], [900, 100])
    shares = partition.dirichlet(labels, 5, alpha=1e6, seed=0, per_device=100)
    assert [80 <= int((labels[share] == 0).sum()) <= 98 for share in shares] == [True] * 5


def test_shards_give_two_labels_a_device():
    assert classes(partition.shards(LABELS, 10, seed=0)) <= 3
    assert classes(partition.iid(LABELS, 10, seed=0)) == 10


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "shards"])
def test_share_is_this_devices_part_and_the_seed_matters(scheme):
    spec = [Partition(scheme=scheme, devices=4, index=i, seed=3) for i in range(4)]
    check([partition.share(LABELS, each) for each in spec], LABELS, 4)
    other = Partition(scheme=scheme, devices=4, index=0, seed=4)
    assert not np.array_equal(partition.share(LABELS, spec[0]), partition.share(LABELS, other))


GOLDEN = [[0, 6, 8, 10], [2, 4, 5, 7], [1, 3, 9, 11]]


def test_shares_agree_between_machines():
    """Devices compute their shares apart from each other: these rows must not move with a release."""
    shares = partition.dirichlet(np.arange(12) % 3, 3, alpha=6.0, seed=5)
    assert [share.tolist() for share in shares] == GOLDEN


def test_holdout_takes_a_fifth_of_every_class():
    train, test = partition.holdout(LABELS, seed=1)
    assert np.array_equal(np.bincount(LABELS[test]), [20] * 10)
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(1000))
    assert not np.array_equal(test, partition.holdout(LABELS, seed=2)[1])


@pytest.mark.parametrize(
    "call",
    [
        lambda: partition.iid(LABELS, 1001, 0),
        lambda: partition.dirichlet(LABELS, 1001, 0.5, 0),
        lambda: partition.dirichlet(LABELS, 10, 0.5, 0, per_device=101),
        lambda: partition.dirichlet(LABELS, 10, 0.5, 0, per_device=0),
        lambda: partition.dirichlet(LABELS, 10, 0.0, 0),
        lambda: partition.dirichlet(LABELS, 10, float("nan"), 0),
        lambda: partition.dirichlet(LABELS, 10, 0.5, -1),
        lambda: partition.dirichlet(LABELS.astype(float), 10, 0.5, 0),
        lambda: partition.iid(LABELS, 0, 0),
        lambda: partition.shards(LABELS, 501, 0),
        lambda: partition.iid(np.empty(0, np.int64), 1, 0),
    ],
)
def test_what_cannot_be_dealt_out(call):
    with pytest.raises(PartitionError):
        call()


def test_fifty_thousand_samples_to_a_hundred_devices():
    labels = np.arange(50_000) % 100
    check(partition.dirichlet(labels, 100, 0.1, 0), labels, 100)
