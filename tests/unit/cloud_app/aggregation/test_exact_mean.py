"""FedAvg: the weighted mean, the same bits in any order, refusals that leave the sum alone."""

import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cloud_app.aggregation import exact_mean
from emo.errors import UpdateRefused

SHAPE = (3, 4)
_elements = st.floats(-65504, 65504, width=32)
_arrays = hnp.arrays(np.float32, SHAPE, elements=_elements)
_updates = st.lists(st.tuples(_arrays, st.integers(1, 2**20)), min_size=1, max_size=12)
LIKE = {"w": np.zeros(SHAPE, np.float32)}


def mean(updates, like=LIKE):
    total = exact_mean.init(like)
    for weights, samples in updates:
        add(total, weights, samples)
    return total.result()


def add(total, weights, samples):
    exact_mean.check(total.like, weights)
    total.add(weights, samples)


@given(_updates, st.randoms(use_true_random=False))
def test_any_order_of_arrival_gives_the_same_bits(updates, rng):
    updates = [({"w": weights}, samples) for weights, samples in updates]
    first = mean(updates)["w"].tobytes()
    for _ in range(3):
        rng.shuffle(updates)
        assert mean(updates)["w"].tobytes() == first


def test_any_order_where_plain_float_sums_differ():
    # A running float32 or float64 sum fails this one; it is what the limbs are for.
    rng = random.Random(0)
    values = [
        (np.float32(rng.uniform(-1, 1) * 10.0 ** rng.randint(-12, 4)), rng.randint(1, 10_000)) for _ in range(500)
    ]
    plain, ours = set(), set()
    for turn in range(20):
        random.Random(turn).shuffle(values)
        plain.add(sum(float(weight) * samples for weight, samples in values))
        out = mean(
            [({"w": np.array([weight])}, samples) for weight, samples in values],
            {"w": np.zeros(1, np.float32)},
        )
        ours.add(out["w"].tobytes())
    assert len(plain) > 1
    assert len(ours) == 1


@given(_updates)
def test_it_is_the_weighted_mean_to_float32_rounding(updates):
    out = mean([({"w": weights}, samples) for weights, samples in updates])["w"]
    stacked = np.stack([weights for weights, _ in updates]).astype(np.longdouble)
    exact = np.average(stacked, axis=0, weights=np.array([samples for _, samples in updates], np.longdouble))
    assert out.dtype == np.float32
    bound = np.abs(exact) * np.finfo(np.float32).eps / 2 * 1.001 + 2.0**-42
    assert (np.abs(out - exact) <= bound).all()


@given(_arrays, st.integers(1, 2**24))
def test_one_device_gives_its_own_weights(weights, samples):
    out = mean([({"w": weights}, samples)])["w"]
    assert (np.abs(out.astype(np.float64) - weights) <= 2.0**-42).all()
    large = np.abs(weights) >= 2.0**-17
    assert (out[large] == weights[large]).all()


def test_the_largest_sum_is_exact():
    like = {"w": np.zeros(2, np.float32)}
    top = np.nextafter(np.float32(65536), np.float32(0))
    updates = [({"w": np.array([top, -top])}, exact_mean.MAX_SAMPLES // 64)] * 64
    assert mean(updates, like)["w"].tolist() == [top, -top]
    low = np.float32(2**-5 - 2**-29)  # fills the low limb
    many = [({"w": np.array([low, -low])}, 1)] * exact_mean.MAX_UPDATES
    assert mean(many, like)["w"].tolist() == [low, -low]


def test_counters_take_the_largest_and_dtypes_stay():
    like = {"n": np.array(0, np.int64), "h": np.zeros(2, np.float16), "d": np.zeros(1)}
    updates = [
        ({"n": np.array(count, np.int64), "h": np.array([1, count], np.float16), "d": np.array([0.1])}, count)
        for count in (3, 9, 5)
    ]
    out = mean(updates, like)
    assert {name: array.dtype for name, array in out.items()} == {name: array.dtype for name, array in like.items()}
    assert out["n"].shape == ()
    assert out["n"] == 9
    assert out["h"].tolist() == [1, np.float16((9 + 81 + 25) / 17)]
    assert out["d"][0] == pytest.approx(0.1, abs=2**-48)


def test_a_negative_integer_buffer_is_kept():
    assert mean([({"n": np.array([-5])}, 1)], {"n": np.array([-5])})["n"].tolist() == [-5]


GOOD = np.ones(SHAPE, np.float32)
_with = {"nan": np.nan, "infinity": np.inf, "minus infinity": -np.inf, "65536": 65536.0, "-65536": -65536.0}
REFUSED = {
    "no weights": ({}, 1),
    "another name": ({"v": GOOD}, 1),
    "one more": ({"w": GOOD, "v": GOOD}, 1),
    "another shape": ({"w": GOOD.T}, 1),
    "a shape that would broadcast": ({"w": np.ones((1, 4), np.float32)}, 1),
    "a scalar": ({"w": np.float32(1)}, 1),
    "another dtype": ({"w": GOOD.astype(np.float64)}, 1),
    "big-endian": ({"w": GOOD.astype(">f4")}, 1),
    "integers": ({"w": GOOD.astype(np.int32)}, 1),
    "no samples": ({"w": GOOD}, 0),
    "fewer than no samples": ({"w": GOOD}, -1),
    "more samples than the sum holds": ({"w": GOOD}, exact_mean.MAX_SAMPLES),
    **{name: ({"w": np.where(np.eye(*SHAPE), value, 0).astype(np.float32)}, 1) for name, value in _with.items()},
}


@pytest.mark.parametrize(("weights", "samples"), REFUSED.values(), ids=REFUSED)
def test_a_refused_update_leaves_the_sum_unchanged(weights, samples):
    total = exact_mean.init(LIKE)
    add(total, {"w": GOOD * 3}, 5)
    with pytest.raises(UpdateRefused):
        add(total, weights, samples)
    assert (total.samples, total.updates) == (5, 1)
    assert (total.result()["w"] == 3).all()


def test_a_bad_array_after_a_good_one_leaves_the_sum_unchanged():
    like = {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)}
    total = exact_mean.init(like)
    add(total, {name: np.ones(2, np.float32) for name in like}, 1)
    with pytest.raises(UpdateRefused, match=r"^b "):
        add(total, {"a": np.full(2, 9, np.float32), "b": np.array([1, np.nan], np.float32)}, 1)
    assert all((array == 1).all() for array in total.result().values())


def test_counters_beyond_what_float64_counts_are_refused():
    total = exact_mean.init({"n": np.array(0, np.int64)})
    for value in (2**53, 2**53 + 1, -(2**53), 2**63 - 1):
        with pytest.raises(UpdateRefused):
            add(total, {"n": np.array(value, np.int64)}, 1)


def test_no_more_updates_than_the_sum_holds(monkeypatch):
    monkeypatch.setattr(exact_mean, "MAX_UPDATES", 2)
    total = exact_mean.init(LIKE)
    for _ in range(2):
        add(total, {"w": GOOD}, 1)
    with pytest.raises(UpdateRefused):
        add(total, {"w": GOOD}, 1)


def test_an_empty_round_has_no_mean():
    with pytest.raises(UpdateRefused, match="no update"):
        exact_mean.init(LIKE).result()


def test_neither_the_global_model_nor_the_update_is_touched():
    like, weights = {"w": np.full(SHAPE, 7, np.float32)}, {"w": GOOD.copy()}
    for array in (like["w"], weights["w"]):
        array.setflags(write=False)
    out = mean([(weights, 2), (weights, 3)], like)
    assert (out["w"] == 1).all()
    assert not np.shares_memory(out["w"], weights["w"])


def test_memory_does_not_grow_with_the_fleet():
    size = 100_000
    like = {"w": np.zeros(size, np.float32)}
    total = exact_mean.init(like)
    arrays = [id(total.high["w"]), id(total.low["w"])]
    update = {"w": np.ones(size, np.float32)}
    tracemalloc.start()
    try:
        for _ in range(30):
            add(total, update, 1)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [id(total.high["w"]), id(total.low["w"])] == arrays
    assert held < 10_000
    assert peak < 5 * 8 * size
