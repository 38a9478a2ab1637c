"""Fixed batches: the same samples for the whole run, only their order moves."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emo.data.batches import FixedBatches, tensors
from emo.data.dataset import Dataset
from emo.errors import DataError


def numbered(n=50, dtype=np.uint8):
    """Image i is filled with i in channel 0 and i + 1 in channel 1, its label is i % 3."""
    images = np.arange(n)[:, None, None, None] + np.arange(2)[None, :, None, None] + np.zeros((1, 1, 2, 2))
    mean, std = np.array([0, 1], np.float32), np.array([1, 2], np.float32)
    return Dataset(images.astype(dtype), np.arange(n) % 3, ("a", "b", "c"), mean, std)


def samples(batch):
    return [int(x) for x in batch.inputs[:, 0, 0, 0]]


@given(st.sets(st.integers(0, 49), min_size=1), st.integers(1, 20), st.integers(0, 2**32))
def test_every_sample_is_in_one_batch_and_stays_there(rows, batch_size, seed):
    rows = np.array(sorted(rows))
    batches, again = (FixedBatches(numbered(), rows, batch_size, seed) for _ in range(2))
    assert batches.samples == len(rows)
    assert len(batches) == -(-len(rows) // batch_size)
    seen = []
    for j in range(len(batches)):
        batch = batches.batch(j)
        assert batch.id == j
        assert len(batch.labels) == batch_size or j == len(batches) - 1
        assert samples(batch) == samples(batches.batch(j)) == samples(again.batch(j))
        assert batch.labels.tolist() == [x % 3 for x in samples(batch)]
        seen += samples(batch)
    assert sorted(seen) == rows.tolist()


def test_the_order_moves_with_seed_round_and_epoch_only():
    batches = FixedBatches(numbered(), np.arange(50), 2, seed=5)
    orders = [batches.order(number, epoch) for number in range(3) for epoch in range(3)]
    assert all(sorted(order) == list(range(25)) for order in orders)
    assert len({tuple(order) for order in orders}) == 9
    assert batches.order(2, 1) == FixedBatches(numbered(), np.arange(50), 2, seed=5).order(2, 1)
    other = FixedBatches(numbered(), np.arange(50), 2, seed=6)
    assert other.order(0, 0) != batches.order(0, 0)
    assert samples(other.batch(0)) != samples(batches.batch(0))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_inputs_are_normalised_copies(dtype):
    dataset = numbered(dtype=dtype)
    for rows in (np.array([3, 7]), slice(3, 5)):
        inputs, labels = tensors(dataset, rows)
        assert inputs.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert torch.equal(inputs[0, 0], torch.full((2, 2), 3.0))
        assert torch.equal(inputs[0, 1], torch.full((2, 2), 1.5))
        inputs.zero_()
        labels.zero_()
    assert dataset.images[3, 0, 0, 0] == 3
    assert dataset.labels[4] == 1


@pytest.mark.parametrize(
    ("rows", "batch_size", "seed"),
    [
        (np.array([], np.int64), 2, 0),
        (np.array([0, 50]), 2, 0),
        (np.array([-1, 3]), 2, 0),
        (np.array([3, 3]), 2, 0),
        (np.array([0.0, 1.0]), 2, 0),
        (np.array([0, 1]), 0, 0),
        (np.array([0, 1]), 2, -1),
    ],
)
def test_rows_that_are_no_share(rows, batch_size, seed):
    with pytest.raises(DataError):
        FixedBatches(numbered(), rows, batch_size, seed)


def test_a_batch_that_is_not_there():
    batches = FixedBatches(numbered(), np.arange(4), 2, seed=0)
    for j in (-1, 2):
        with pytest.raises(IndexError):
            batches.batch(j)
