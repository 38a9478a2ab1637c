"""What a round refuses, shortens, cuts and keeps, and which configurations cannot work."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from updates import LIKE, RULES, moved, outcome, rounds, same, updates

from cloud_app.aggregation import aggregator, clipping, exact_mean, update_store
from emo.config import CloudConfig
from emo.config_file import parse
from emo.errors import ConfigError, UpdateRefused

# -- norms


def test_the_norm_is_that_of_the_change_without_counters():
    like = {"w": np.ones((2, 2), np.float32), "n": np.array(0, np.int64)}
    there = {"w": np.ones((2, 2), np.float32) * 3, "n": np.array(1000, np.int64)}
    assert clipping.norm(like, there) == 4.0
    assert clipping.norm(like) == 2.0


@pytest.mark.parametrize("aggregate", RULES)
def test_an_update_that_goes_too_far_is_refused_and_changes_nothing(aggregate):
    chosen = (
        rounds(aggregate, max_norm=3.0, min_devices=1, attackers=0, quorum=1) if aggregate != "multi-krum" else None
    )
    chosen = chosen or rounds(aggregate, max_norm=3.0, min_devices=9)
    total = aggregator.init(chosen, LIKE, 9)
    size = clipping.norm(LIKE)
    total.add("good", moved(LIKE, lambda a: 2.9 * a), 1, 1)
    with pytest.raises(UpdateRefused, match=r"max_norm.*learning rate"):
        total.add("bad", moved(LIKE, lambda a: 3.1 * a), 1, 1)
    assert total._norms == {"good": pytest.approx(2.9 * size)}
    if total.sum is None:
        assert total.store.samples == {"good": 1}
    else:
        assert (total.sum.updates, total.sum.samples) == (1, 1)


def test_a_model_of_zeros_may_still_move():
    total = aggregator.init(rounds(max_norm=2.0), {"w": np.zeros(4, np.float32)}, 1)
    total.add("d", {"w": np.ones(4, np.float32)}, 1, 1)
    with pytest.raises(UpdateRefused):
        total.add("e", {"w": np.full(4, 1.1, np.float32)}, 1, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 65536.0])
@pytest.mark.parametrize("aggregate", RULES)
def test_what_fedavg_refuses_every_rule_refuses(aggregate, bad):
    total = aggregator.init(rounds(aggregate), LIKE, 9)
    for weights in (
        {},
        {**LIKE, "b": np.zeros(3, np.float32)},
        {**LIKE, "b": np.array([0, bad], np.float32)},
    ):
        with pytest.raises(UpdateRefused):
            total.add("d", weights, 1, 1)
    with pytest.raises(UpdateRefused):
        total.add("d", LIKE, 0, 1)
    with pytest.raises(UpdateRefused, match="no update"):
        total.result()


@pytest.mark.parametrize("aggregate", RULES)
def test_a_fixed_limit_shortens_what_is_over_it(aggregate):
    sent = {f"d{n}": moved(LIKE, lambda a, n=n: 0.01 * (n + 1) * np.sign(a + 1e-9)) for n in range(9)}
    norms = {device: clipping.norm(LIKE, weights) for device, weights in sent.items()}
    limit = norms["d4"]
    short = {
        device: weights if norms[device] <= limit else clipping.clipped(LIKE, weights, norms[device], limit)
        for device, weights in sent.items()
    }
    found = outcome(rounds(aggregate, clip_norm=limit), sent)
    assert found.clipped == ("d5", "d6", "d7", "d8")
    same(found.weights, outcome(rounds(aggregate), short).weights)
    assert all(clipping.norm(LIKE, weights) <= limit * (1 + 1e-6) for weights in short.values())


def test_the_median_limit_is_the_rounds_own():
    sent = {f"d{n}": moved(LIKE, lambda a, n=n: 0.01 * (n + 1) * np.ones(a.shape)) for n in range(9)}
    sent["d0"] = moved(LIKE, lambda a: np.full(a.shape, 1e4))
    found = outcome(rounds("mean", clip_norm="median"), sent)
    assert found.clipped == ("d0", "d6", "d7", "d8")
    median = clipping.norm(LIKE, sent["d5"])
    assert clipping.norm(LIKE, found.weights) <= median


# -- samples


@pytest.mark.parametrize("liars", [1, 2, 3])
@pytest.mark.parametrize("claim", [61, 2**23])
def test_devices_that_lie_about_their_samples_count_for_two_others_at_most(liars, claim):
    announced = [30] * (9 - liars) + [claim] * liars
    cap = aggregator.cap(rounds(), announced)
    assert cap >= 60
    share = liars * min(claim, cap) / sum(min(samples, cap) for samples in announced)
    assert share <= 2 * liars / 9
    if claim > 100:
        assert share == pytest.approx(2 * liars / 9, abs=0.01)


@given(st.lists(st.integers(0, 2**24), min_size=1, max_size=30), st.floats(1, 20))
def test_nobody_has_more_than_his_shares_and_most_lose_nothing(announced, times):
    cap = aggregator.cap(rounds(max_weight=times), announced)
    whole = sum(min(samples, cap) for samples in announced)
    assert cap <= max(1, times * whole / len(announced) + 1)
    over = [samples for samples in announced if samples > cap]
    assert len(over) <= len(announced) / times or cap == 1
    if max(announced) <= times * sum(announced) / len(announced):
        assert not over  # plain FedAvg


def test_a_cap_where_few_or_none_say_what_they_have():
    assert aggregator.cap(rounds(max_weight=None), [30, 2**23]) is None
    assert aggregator.cap(rounds(), [0, 0]) == 1  # all count the same
    assert aggregator.cap(rounds(), [0, 0, 0, 2**23]) == 1
    assert aggregator.cap(rounds(), [0, 30, 30, 30, 30]) == 48


def test_a_liar_moves_the_mean_by_his_shares_and_the_other_rules_not_at_all():
    announced = {f"d{n}": 30 for n in range(8)} | {"liar": 2**23}
    sent = {
        device: moved(LIKE, lambda a, device=device: np.full(a.shape, float(device == "liar"))) for device in announced
    }
    cap = aggregator.cap(rounds(), list(announced.values()))
    mean = outcome(
        rounds(), sent, samples={device: min(samples, cap) for device, samples in announced.items()}
    ).weights["b"]
    np.testing.assert_allclose(mean, 2 / 9, atol=0.01)
    for aggregate in ("median", "trimmed-mean", "multi-krum"):
        found = outcome(rounds(aggregate), sent, samples=announced).weights["b"]
        assert (found == 0).all()


# -- what is kept


def test_a_sum_goes_on_from_what_another_process_had():
    sent = updates(3)
    whole = outcome(rounds(), sent)
    total = aggregator.init(rounds(), LIKE, 3)
    total.add("d0", sent["d0"], 1, 1)
    again = aggregator.init(rounds(), LIKE, 3)
    again.sum = total.sum
    for device in ("d1", "d2"):
        again.add(device, sent[device], 1, 1)
    same(again.result().weights, whole.weights)


def test_the_mean_keeps_nothing_the_others_a_file_each(tmp_path):
    sent = updates(9)
    for aggregate, clip_norm, files in [
        ("mean", None, 0),
        ("mean", 1.0, 0),
        ("mean", "median", 3),
        ("median", None, 3),
    ]:
        total = aggregator.init(rounds(aggregate, clip_norm=clip_norm), LIKE, 9, folder=tmp_path)
        for device in ("d0", "d1", "d2"):
            total.add(device, sent[device], 1, 1)
        assert len(list(tmp_path.iterdir())) == files
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) == files * 32
        total.result()
        assert list(tmp_path.iterdir()) == []


def test_what_an_earlier_process_left_has_no_part_in_it(tmp_path):
    total = aggregator.init(rounds("median"), LIKE, 9, folder=tmp_path)
    total.add("old", moved(LIKE, lambda a: np.full(a.shape, 9.0)), 1, 1)
    (tmp_path / "notes").write_text("mine")
    found = outcome(rounds("median"), {"new": LIKE}, folder=tmp_path)
    same(found.weights, LIKE)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_a_disk_that_is_full_refuses_the_update(tmp_path, monkeypatch):
    total = aggregator.init(rounds("median"), LIKE, 9, folder=tmp_path)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(update_store.files, "write", full)
    with pytest.raises(UpdateRefused, match="No space left"):
        total.add("d", LIKE, 1, 1)
    assert total.store.devices == []


def test_an_update_that_was_cut_meanwhile_is_no_model(tmp_path):
    total = aggregator.init(rounds("median"), LIKE, 9, folder=tmp_path)
    total.add("d", LIKE, 1, 1)
    (tmp_path / "d.update").write_bytes(b"short")
    with pytest.raises(UpdateRefused, match="shorter"):
        total.result()


def test_a_fleet_that_does_not_fit_the_disk_is_refused_at_the_start(tmp_path):
    aggregator.check(rounds("median"), LIKE, tmp_path / "not" / "there")
    with pytest.raises(ConfigError, match=r"keep .* updates"):
        aggregator.check(rounds("median", per_round=10**18), LIKE, tmp_path)
    aggregator.check(rounds("mean", per_round=10**18), LIKE, tmp_path)  # keeps none


@pytest.mark.parametrize("aggregate", ["median", "trimmed-mean", "multi-krum"])
def test_memory_does_not_grow_with_the_fleet(aggregate, tmp_path, monkeypatch):
    size = 100_000
    monkeypatch.setattr(update_store, "_BLOCK", 40_000)
    like = {"w": np.zeros(size, np.float32)}
    update = {"w": np.ones(size, np.float32)}

    def peak(count):
        chosen = rounds(aggregate, min_devices=count)
        tracemalloc.start()
        try:
            total = aggregator.init(chosen, like, count, folder=tmp_path)
            for number in range(count):
                total.add(f"d{number}", update, 1, 1)
            total.result()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = peak(9), peak(27)
    assert many < few + 4 * size  # not one model more


# -- configuration


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"aggregate": "multi-krum"}, r"2 x 1 \+ 3 updates where 1 of 1"),
        ({"aggregate": "multi-krum", "min_devices": 8, "quorum": 0.5}, r"may close with 4 \(quorum 0.5\)"),
        (
            {"aggregate": "multi-krum", "min_devices": 8, "per_round": 4},
            "raise min_devices, per_round or quorum",
        ),
        ({"aggregate": "trimmed-mean", "min_devices": 4, "attackers": 0.45, "quorum": 1}, r"2 x 2 \+ 1"),
        ({"aggregate": "mode"}, "aggregate"),
        ({"attackers": 0.5}, "attackers"),
        ({"clip_norm": 0}, "clip_norm"),
        ({"clip_norm": "mean"}, "clip_norm"),
        ({"max_norm": 0}, "max_norm"),
        ({"max_weight": 0.5}, "max_weight"),
    ],
)
def test_what_cannot_outvote_the_hostile_is_refused_at_the_start(values, reason):
    with pytest.raises(ConfigError, match=reason):
        parse(CloudConfig, {"rounds": values}, "cloud.yaml", environ={})


def test_what_can_is_not():
    for values in (
        {"aggregate": "multi-krum", "min_devices": 8},
        {"aggregate": "multi-krum", "min_devices": 20, "per_round": 10},
        {"aggregate": "trimmed-mean", "min_devices": 4},
        {"aggregate": "median", "attackers": 0.49},
        {"clip_norm": "median"},
        {"clip_norm": 5},
    ):
        parse(CloudConfig, {"rounds": values}, "cloud.yaml", environ={})
    assert [rounds(attackers=share).hostile(20) for share in (0, 0.05, 0.2, 0.21, 0.3)] == [0, 1, 4, 5, 6]


def test_updates_are_counted_against_what_a_sum_holds(monkeypatch):
    monkeypatch.setattr(exact_mean, "MAX_SAMPLES", 10)
    total = aggregator.init(rounds("median"), LIKE, 9)
    total.add("a", LIKE, 9, 1)
    with pytest.raises(UpdateRefused, match="1 to 10"):
        total.add("b", LIKE, 2, 1)
