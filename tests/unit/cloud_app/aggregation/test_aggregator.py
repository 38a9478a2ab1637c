"""Robust aggregation: what each rule gives, the same bits in any order, what hostile devices cannot do to it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from updates import LIKE, RULES, moved, outcome, rounds, same, stacked, updates

from cloud_app.aggregation import byzantine, update_store
from cloud_app.aggregation.update_store import UpdateStore

# -- the rules are what the papers say


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
def test_the_median_is_numpys(count):
    sent = updates(count)
    found = outcome(rounds("median"), sent).weights
    for name in LIKE:
        np.testing.assert_array_equal(found[name], np.median(stacked(sent, name), axis=0).astype(np.float32))


@pytest.mark.parametrize(("count", "attackers", "hostile"), [(9, 0.2, 2), (10, 0.1, 1), (9, 0.0, 0), (5, 0.4, 2)])
def test_the_trimmed_mean_leaves_out_as_many_at_each_end(count, attackers, hostile):
    sent = updates(count)
    chosen = rounds("trimmed-mean", attackers=attackers, min_devices=count, per_round=count, quorum=1)
    found = outcome(chosen, sent).weights
    for name in LIKE:
        ordered = np.sort(stacked(sent, name), axis=0)[hostile : count - hostile]
        np.testing.assert_allclose(found[name], ordered.mean(axis=0), rtol=1e-6)


def krum(sent, hostile):
    """Blanchard et al. 2017, as it is written: every pair, one after the other."""
    flat = {d: np.concatenate([w[n].ravel() for n in LIKE]).astype(np.float64) for d, w in sent.items()}
    near = len(sent) - hostile - 2
    scores = {}
    for one, weights in flat.items():
        far = sorted(float(((weights - flat[two]) ** 2).sum()) for two in flat if two != one)
        scores[one] = sum(far[:near])
    return set(sorted(sorted(flat), key=scores.__getitem__)[:near])


@pytest.mark.parametrize("seed", range(5))
def test_multi_krum_takes_those_that_the_paper_takes(seed):
    sent = updates(9, seed)
    found = outcome(rounds("multi-krum"), sent)
    taken = krum(sent, 2)
    assert set(found.left_out) == sent.keys() - taken
    for name in LIKE:
        wanted = np.mean([sent[device][name].astype(np.float64) for device in taken], axis=0)
        np.testing.assert_allclose(found.weights[name], wanted, rtol=1e-6, atol=1e-7)


def test_multi_krum_leaves_out_what_lies_apart_also_when_it_lies_together():
    sent = updates(9)
    for device in ("d2", "d7"):
        sent[device] = moved(LIKE, lambda a: np.full(a.shape, 50.0))
    assert {"d2", "d7"} <= set(outcome(rounds("multi-krum"), sent).left_out)


def test_distances_bear_a_model_that_is_large_and_hardly_moves():
    like = {"w": np.full(4000, 60000.0, np.float32)}
    kept = UpdateStore(like)
    steps = {"a": 0.0, "b": 0.5, "c": -1.0}
    for device, step in steps.items():
        kept.put(device, moved(like, lambda a, step=step: np.full(a.shape, step)), 1)
    found = byzantine._distances(kept)
    assert found[0, 1] == 4000 * 0.25
    assert found[1, 2] == 4000 * 2.25


# -- order, blocks, dtypes


@pytest.mark.parametrize("aggregate", RULES)
@pytest.mark.parametrize("clip_norm", [None, 1.0, "median"])
@settings(max_examples=15, deadline=None)
@given(st.permutations(range(9)), st.integers(0, 2**32 - 1))
def test_any_order_of_arrival_gives_the_same_bits(aggregate, clip_norm, order, seed):
    sent = updates(9, seed)
    chosen = rounds(aggregate, clip_norm=clip_norm)
    samples = {device: 1 + 7 * place for place, device in enumerate(sent)}
    first = outcome(chosen, sent, samples=samples)
    other = outcome(chosen, {f"d{n}": sent[f"d{n}"] for n in order}, samples=samples)
    same(other.weights, first.weights)
    assert (other.clipped, other.left_out) == (first.clipped, first.left_out)


@pytest.mark.parametrize("aggregate", ["median", "trimmed-mean"])
@settings(max_examples=25, deadline=None)
@given(st.permutations(range(9)), st.data())
def test_nor_does_it_matter_which_device_said_what(aggregate, order, data):
    value = st.sampled_from([-0.0, 0.0, 1.0, -1.0, 0.1])
    like = {"w": np.zeros(4, np.float32)}
    sent = [np.array(data.draw(st.lists(value, min_size=4, max_size=4)), np.float32) for _ in range(9)]
    first = outcome(rounds(aggregate), {f"d{n}": {"w": sent[n]} for n in range(9)}, like)
    other = outcome(rounds(aggregate), {f"d{n}": {"w": sent[m]} for n, m in enumerate(order)}, like)
    same(other.weights, first.weights)


@pytest.mark.parametrize("aggregate", RULES)
def test_a_model_in_many_blocks_gives_the_same_as_in_one(aggregate, monkeypatch):
    sent = updates(9)
    whole = outcome(rounds(aggregate, clip_norm="median"), sent)
    monkeypatch.setattr(update_store, "_BLOCK", 18)  # two elements of each device
    pieces = outcome(rounds(aggregate, clip_norm="median"), sent)
    assert pieces.left_out == whole.left_out
    same(pieces.weights, whole.weights)


@pytest.mark.parametrize("aggregate", ["median", "trimmed-mean", "multi-krum"])
def test_counters_dtypes_and_shapes_stay(aggregate):
    like = {
        "n": np.array(5, np.int64),
        "h": np.zeros((1, 2), np.float16),
        "none": np.zeros((0, 3), np.float32),
        "d": np.zeros(1),
    }
    sent = {
        f"d{n}": {
            "n": np.array(2**52 if n == 4 else 10 + n, np.int64),
            "h": np.full((1, 2), n / 8, np.float16),
            "none": like["none"],
            "d": np.array([n / 10]),
        }
        for n in range(9)
    }
    found = outcome(rounds(aggregate), sent, like).weights
    assert {n: (a.dtype, a.shape) for n, a in found.items()} == {n: (a.dtype, a.shape) for n, a in like.items()}
    if aggregate != "multi-krum":
        assert found["n"] == 15  # a median is one of them, and one liar does not make it large
    assert 0 < float(found["h"][0, 0]) < 1


@pytest.mark.parametrize("aggregate", RULES)
def test_equal_updates_are_the_result(aggregate):
    one = updates(1)["d0"]
    found = outcome(rounds(aggregate), {f"d{n}": one for n in range(9)}).weights
    same(found, one)


# -- hostile updates


@pytest.mark.parametrize("aggregate", ["median", "trimmed-mean", "multi-krum"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([-1.0, 10.0, 1e3]), together=st.booleans())
def test_two_of_nine_cannot_take_it_out_of_what_the_honest_say(aggregate, seed, scale, together):
    sent = updates(9, seed)
    honest = {device: sent[device] for device in list(sent)[2:]}
    rng = np.random.default_rng(seed)
    for device in ("d0", "d1"):
        noise = np.random.default_rng(7) if together else rng
        sent[device] = moved(LIKE, lambda a, noise=noise: scale * noise.normal(1, 1, a.shape))
    found = outcome(rounds(aggregate), sent).weights
    for name, start in LIKE.items():
        lowest, highest = stacked(honest, name).min(axis=0), stacked(honest, name).max(axis=0)
        reach = 0.0 if aggregate != "multi-krum" else np.abs(stacked(honest, name) - start).max()
        assert (found[name] >= lowest - reach - 1e-6).all()
        assert (found[name] <= highest + reach + 1e-6).all()


def test_the_mean_gives_in_to_one():
    sent = updates(9)
    sent["d0"] = moved(LIKE, lambda a: np.full(a.shape, 1e3))
    assert np.abs(outcome(rounds("mean"), sent).weights["w"]).min() > 50
