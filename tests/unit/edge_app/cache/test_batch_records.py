"""What the policies rest on: the ledger of batches and the tree of sums."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_app.cache.batch_records import BatchRecords
from edge_app.cache.sum_tree import SumTree


@given(st.lists(st.tuples(st.integers(0, 40), st.just(0.0) | st.floats(1e-3, 1e3)), max_size=60))
def test_the_tree_finds_what_a_running_sum_would(todo):
    tree, weights = SumTree(), np.zeros(41)
    for place, weight in todo:
        tree[place] = weights[place] = weight
    assert tree.total == pytest.approx(weights.sum())
    for draw in np.linspace(0, 1, 23, endpoint=False) * tree.total:
        place = tree.find(draw)
        assert not todo or not weights.any() or weights[place] > 0
        assert weights[:place].sum() <= draw * (1 + 1e-9) + 1e-9
        assert draw <= weights[: place + 1].sum() * (1 + 1e-9) + 1e-9
    if weights.any():
        assert weights[tree.find(tree.total * 2)] > 0  # rounding may ask for more than there is
    filled = SumTree()
    filled.fill(weights)
    assert filled.total == tree.total


def test_a_ledger_grows_and_forgets():
    one = BatchRecords()
    for batch in range(300):
        one.add(("d", batch), batch)
    for batch in range(0, 300, 2):
        one.remove(("d", batch))
    one.remove(("d", 0))
    one.trained(("d", 0), 1.0)
    assert (len(one), one.fresh) == (150, 150)
    assert sorted(one.column("version")) == list(range(1, 300, 2))
    assert one.newest(2) == [("d", 299), ("d", 297)]
    one.clear()
    assert (len(one), one.fresh, one.version(("d", 1)), one.newest(1)) == (0, 0, None, [])
