"""What each policy guarantees, and that a restart goes on where it was."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_app.cache.sampling import FLOOR, HALF_LIFE, POLICIES, Fresh, as_json
from emo.errors import CacheError

CHI_SQUARE = {5: 18.467, 10: 27.877}  # by the number of classes, which one draw in a thousand exceeds
every_policy = pytest.mark.parametrize("policy", POLICIES)
keys = st.tuples(st.sampled_from("de"), st.integers(0, 5))
losses = st.floats(0, 10) | st.just(math.nan)
calls = st.lists(
    st.tuples(st.just("add"), keys, st.integers(0, 2000))
    | st.tuples(st.just("trained"), keys, losses)
    | st.tuples(st.just("remove"), keys, st.none())
    | st.tuples(st.just("pick"), st.none(), st.none()),
    max_size=60,
)


def as_expected(counts, expected=None):
    """Pearson's test; all classes are equally likely unless `expected` says how many of each."""
    if expected is None:
        expected = [sum(counts) / len(counts)] * len(counts)
    off = sum((here - there) ** 2 / there for here, there in zip(counts, expected, strict=True))
    return off < CHI_SQUARE[len(counts)]


def sampler(policy, seed=0):
    return POLICIES[policy](np.random.default_rng(seed))


def play(one, todo):
    """The picks of these calls; what is trained on is no longer new."""
    picked = []
    for call, key, value in todo:
        if call == "pick":
            picked.append(one.pick())
        elif call == "remove":
            one.remove(key)
        elif call == "add" and value >= (one.version(key) or 0):
            one.add(key, value)
        elif call == "trained":
            one.trained(key, value)
    return picked


def filled(policy, losses=(), count=10, seed=0):
    one = sampler(policy, seed)
    for batch in range(count):
        one.add(("d", batch), batch)
        one.trained(("d", batch), losses[batch] if batch < len(losses) else 1.0)
    return one


def test_policies_are_what_the_configuration_calls_them():
    assert list(POLICIES) == ["mixed", "uniform", "importance", "fresh"]


@every_policy
@given(todo=calls)
@settings(max_examples=60, deadline=None)
def test_it_never_names_what_is_not_there_and_always_names_what_is_due(policy, todo):
    one, known, new = sampler(policy), {}, []
    for call in todo:
        due = one.due(3)
        assert len(one) == len(known)
        assert set(due) <= set(new if policy == "mixed" else [])
        assert len(due) == len(set(due)) <= 3
        (picked,) = play(one, [call]) or (None,)
        kind, key, value = call
        if kind == "add" and value >= known.get(key, 0):
            known[key] = value
            new = [k for k in new if k != key] + [key]
        elif kind == "remove":
            known.pop(key, None)
        elif kind == "pick":
            assert (picked is None) == (not known)
            assert picked is None or (picked[0] in known and picked[1] > 0)
            assert not due or picked[0] == due[0]
            if policy == "mixed" and picked:
                key, kind = picked[0], "seen"
        if kind in ("remove", "trained", "seen"):
            new = [k for k in new if k != key]
        assert one.fresh == len(new)
        assert {k: one.version(k) for k in known} == known


@every_policy
@given(before=calls, after=calls, left_out=st.sets(keys))
@settings(max_examples=60, deadline=None)
def test_a_restart_goes_on_with_the_same_picks(policy, before, after, left_out):
    one = sampler(policy)
    play(one, before)
    state = json.loads(json.dumps(as_json(one.state())))
    there = [key for each in one._devices.values() for key in each.keys() if key not in left_out]  # noqa: SIM118 - ours
    for key in left_out:
        one.remove(key)
    two = sampler(policy, seed=99)
    for key in sorted(there, key=lambda key: (one.version(key), key)):  # a cache reads its disk in another order
        two.add(key, one.version(key))
    two.resume(state)
    assert [two.version(key) for key in there] == [one.version(key) for key in there]
    assert two.fresh == one.fresh
    if not left_out:
        assert play(two, [*after, *[("pick", None, None)] * 5]) == play(one, [*after, *[("pick", None, None)] * 5])
        assert two.due(99) == one.due(99)
        for column in ("version", "trained", "loss"):
            np.testing.assert_array_equal(two.column(column), one.column(column))


@every_policy
def test_what_came_while_it_was_down_is_new(policy):
    one = filled(policy, count=3)
    state = as_json(one.state())
    two = sampler(policy)
    for batch, version in ((7, 7), (0, 0), (1, 5), (2, 2)):
        two.add(("d", batch), version)
    two.resume(state)
    assert two._devices["d"].newest(9) == [("d", 1), ("d", 7)]
    assert sorted(two.column("trained")) == [0, 0, 1, 1]


@every_policy
@pytest.mark.parametrize(
    "damage",
    [
        {"rows": "junk!"},
        {"rows": "AAAA"},
        {"rows": 3},
        {"devices": []},
        {"devices": None},
        {"random": {}},
        {"random": {"bit_generator": "PCG64", "state": {"state": -1, "inc": "x"}}},
        {"loss": math.inf},
        {"loss": -1.0},
    ],
    ids=str,
)
def test_a_damaged_state_is_refused_and_changes_nothing(policy, damage):
    one, two = filled(policy), filled(policy)
    if "loss" in damage:
        two._devices["d"]._rows["loss"][3] = damage["loss"]
        state = as_json(two.state())
    else:
        state = as_json(one.state())
        of = {"d": state["of"]["d"] | damage} if damage.keys() <= {"rows", "devices"} else state["of"]
        state |= {"of": of} | damage
    for _ in range(5):  # so that its chance would come again
        one.pick()
    before = as_json(one.state())
    with pytest.raises(CacheError, match="damaged"):
        one.resume(state)
    assert as_json(one.state()) == before


@every_policy
def test_same_seed_same_keys(policy):
    draws = [[one.pick() for _ in range(50)] for one in (filled(policy, seed=seed) for seed in (1, 1, 2))]
    assert draws[0] == draws[1] != draws[2]


@given(st.lists(st.integers(0, 9) | st.just(None), max_size=80), st.integers(0, 99))
def test_mixed_new_batches_newest_first_before_any_replay(todo, seed):
    one, fresh, known = sampler("mixed", seed), [], set()
    for version, batch in enumerate(todo):
        if batch is not None:
            key = ("d", batch)
            one.add(key, version)
            fresh = [k for k in fresh if k != key] + [key]
            known.add(key)
            continue
        picked = one.pick()
        if fresh:
            assert picked == (fresh.pop(), 1.0)
        else:
            assert (picked is None) == (not known)
            assert picked is None or picked[0] in known


@pytest.mark.parametrize("policy", ["mixed", "uniform"])
def test_replay_is_uniform(policy):
    one = filled(policy)
    counts = Counter(one.pick()[0] for _ in range(5000))
    assert len(counts) == 10
    assert as_expected(list(counts.values()))


def test_uniform_does_not_prefer_what_is_new():
    one = filled("uniform", count=9)
    one.add(("d", 9), 9)
    counts = Counter(one.pick()[0][1] for _ in range(5000))
    assert as_expected([counts[batch] for batch in range(10)])


@given(
    known=st.lists(st.floats(1e-200, 100) | st.sampled_from([0.0, math.nan]), max_size=12),
    unknown=st.integers(0, 3),
    gone=st.integers(0, 4),
)
@settings(deadline=None)
def test_importance_is_proportional_and_unbiased(known, unknown, gone):
    one = filled("importance", known, len(known))
    for batch in range(unknown):
        one.add(("d", 100 + batch), 0)
    for batch in range(min(gone, len(known))):
        one.remove(("d", batch))
    left = [0.0 if math.isnan(loss) else loss for loss in known[gone:]]
    highest = max(left, default=0.0) or 1.0
    expected = {("d", batch): loss for batch, loss in enumerate(left, min(gone, len(known)))}
    expected |= {("d", 100 + batch): highest for batch in range(unknown)}
    count, total = len(expected), math.fsum(expected.values())
    weights = dict(one.pick() for _ in range(60 * count))
    chances = {
        key: FLOOR / count + (1 - FLOOR) * (loss / total if total else 1 / count) for key, loss in expected.items()
    }
    for (
        key,
        weight,
    ) in weights.items():  # so the expected weight * value is the mean: p * 1 / (N p) = 1 / N each
        assert weight == pytest.approx(1 / (count * chances[key]), rel=1e-9)
        assert weight <= 1 / FLOOR
    assert weights.keys() == expected.keys()  # none starves: the rarest has 0.2 / 12, and 720 draws


def test_losses_too_small_to_draw_by_are_none():
    one = filled("importance", [math.nan, 5e-324, 5e-324], 3)
    assert {one.pick()[0] for _ in range(200)} == {("d", batch) for batch in range(3)}


def test_importance_draws_with_the_chances_that_its_weights_say():
    losses = [0.0, 0.1, 0.5, 1, 1, 2, 3, 5, 8]
    one = filled("importance", losses, 9)
    one.add(("d", 9), 0)
    drawn = [one.pick() for _ in range(20_000)]
    weights, counts = dict(drawn), Counter(key for key, _ in drawn)
    chances = {key: 0.1 / weight for key, weight in weights.items()}
    assert sum(chances.values()) == pytest.approx(1)
    assert chances["d", 8] == chances["d", 9]  # not known: as the highest known
    assert as_expected([counts[k] for k in chances], [20_000 * chances[k] for k in chances])
    values = {key: 1.0 + key[1] ** 2 for key in chances}
    mean = np.mean([weight * values[key] for key, weight in drawn])
    assert mean == pytest.approx(np.mean(list(values.values())), rel=0.03)


def test_a_loss_is_averaged_and_a_refused_batch_is_met_rarely():
    one = filled("importance", [4.0], 2)
    one.trained(("d", 0), 2.0)
    assert list(one.column("loss")) == [3.0, 1.0]
    one.trained(("d", 0), math.nan)
    assert list(one.column("loss")) == [0.0, 1.0]
    counts = Counter(one.pick()[0][1] for _ in range(2000))
    assert counts[0] / 2000 == pytest.approx(FLOOR / 2, abs=0.03)


def test_a_new_version_has_no_loss():
    one = filled("importance", [4.0], 2)
    one.add(("d", 0), 9)
    assert np.isnan(one.column("loss")[0])
    assert list(one.column("trained")) == [0, 1]


def test_fresh_falls_by_half_in_a_half_life():
    one = Fresh(np.random.default_rng(0))
    ages = [0, HALF_LIFE // 2, HALF_LIFE, 2 * HALF_LIFE, 30 * HALF_LIFE]
    for batch, age in enumerate(ages):
        one.add(("d", batch), 1000 - age)
    law = np.array([2 ** (-age / HALF_LIFE) for age in ages])
    chances = FLOOR / 5 + (1 - FLOOR) * law / law.sum()
    assert (np.diff(chances) < 0).all()
    counts = Counter(one.pick()[0][1] for _ in range(20_000))
    assert as_expected([counts[batch] for batch in range(5)], 20_000 * chances)


@given(st.lists(st.integers(0, 10**6) | st.integers(10**18, 10**19 - 1), min_size=1, max_size=20), st.data())
@settings(deadline=None)
def test_fresh_a_newer_version_is_never_rarer_whatever_came_before(versions, data):
    one = Fresh(np.random.default_rng(0))
    for batch, version in enumerate(versions):
        one.add(("d", batch), version)
    for batch in data.draw(st.sets(st.integers(0, len(versions) - 1), max_size=len(versions) - 1)):
        one.remove(("d", batch))
    assert one.pick()
    rows = sorted((one.version(key), one._tree[place]) for place, key in enumerate(one._keys))
    assert [weight for _, weight in rows] == sorted(weight for _, weight in rows)
    assert rows[-1][1] > 0
    assert all(weight < math.inf for _, weight in rows)


# -- each device its part


def parts(one, draws=3000):
    """How often each device was drawn, and what."""
    return Counter(one.pick()[0][0] for _ in range(draws))


@every_policy
def test_more_batches_newer_versions_or_higher_losses_draw_no_larger_part(policy):
    one = sampler(policy)
    for device, count in (("a", 20), ("b", 20), ("liar", 520)):
        for batch in range(count):
            one.add((device, batch), 10**6 if device == "liar" else batch)
            one.trained((device, batch), 50.0 if device == "liar" else 0.5)
    found = parts(one)
    assert all(900 < found[device] < 1100 for device in ("a", "b", "liar")), found


def test_a_flood_of_new_batches_comes_before_what_is_new_of_others_four_times_at_most():
    one = sampler("mixed")
    for device in "ab":
        for batch in range(10):
            one.add((device, batch), 1)
    for batch in range(500):
        one.add(("liar", batch), 1)
    found = [one.pick()[0] for _ in range(30)]
    assert Counter(device for device, _ in found) == {"a": 10, "b": 10, "liar": 10}
    assert found[:3] == [("a", 9), ("b", 9), ("liar", 499)]
    later = parts(one, 600)
    assert later["liar"] < 300  # 30 more as new ones, then a third of all
    assert min(later["a"], later["b"]) > 130


def test_a_device_with_few_batches_does_not_have_them_drawn_more_often_than_others():
    one = sampler("uniform")
    for device, count in (("a", 2), ("b", 20), ("c", 20)):
        for batch in range(count):
            one.add((device, batch), 1)
    found = parts(one)
    assert found["a"] / 2 == pytest.approx(found["b"] / 20, rel=0.35)
