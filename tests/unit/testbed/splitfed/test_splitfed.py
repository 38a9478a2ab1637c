"""Split federated learning: the network trains as if it were whole, and every byte between its halves is counted."""

import numpy as np
import pytest
import torch
from pools import LocalPool
from splits import plan, same, whole

from cloud_app.aggregation import exact_mean
from emo.config import Data, Model, Training
from emo.data import registry
from emo.errors import ConfigError, DataError, QuorumError
from emo.models import split_network
from testbed import node_configs
from testbed.fleet.fleet import Fleet
from testbed.splitfed.halves import half, joined
from testbed.splitfed.splitfed import Split
from testbed.timing import scenario
from testbed.workers.pool import WorkerLost

pytestmark = pytest.mark.usefixtures("one_thread")

PAPER = scenario.load(None)
DROPPING = PAPER.model_copy(update={"drop_outs": 0.5})


def method(settings, folder, where=PAPER):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("testbed.splitfed.splitfed.Pool", LocalPool)
        patch.setattr("testbed.fleet.fleet.Pool", LocalPool)
        kind = Split if settings.method.startswith("sfl") else Fleet
        return kind(settings, where, *registry.load(Data()), 1, folder)


def fl_large(settings, rounds, where=PAPER):
    weights = split_network.weights(node_configs.network(settings))
    for number in range(1, rounds + 1):
        total = exact_mean.init(weights)
        for device in node_configs.sampled(settings, number):
            if not where.drops(settings, number, device):
                total.add(whole(settings, weights, number, device), settings.samples)
        weights = total.result()
    return weights


def state(made):
    parts = made.weights()
    return joined(parts["trunk"], parts["head"])


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Three rounds of each method: (weights, the work and time of each round, accuracies)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    for name in ("sfl-cloud", "sfl-edge", "fl-large"):
        made = method(plan(name), tmp_path_factory.mktemp(name))
        rounds = [made.round(number) for number in (1, 2, 3)]
        found[name] = state(made), rounds, made.accuracies()
    torch.set_num_threads(before)
    return found


def test_sfl_cloud_is_fedavg_of_the_whole_network_to_the_bit(ran):
    assert same(ran["sfl-cloud"][0], fl_large(plan(), 3))


def test_sfl_cloud_and_fl_large_of_the_testbed_end_with_the_same_bits(ran):
    (weights, rounds, accuracies), (theirs, large, percents) = ran["sfl-cloud"], ran["fl-large"]
    assert same(weights, theirs)
    assert accuracies == pytest.approx(percents)
    for (work, _), (other, _) in zip(rounds, large, strict=True):
        assert work.loss == pytest.approx(other.loss, rel=1e-12)
        assert [(w.device, w.batches, w.samples) for w in work.devices] == [
            (w.device, w.batches, w.samples) for w in other.devices
        ]


def test_sfl_edge_is_fedavg_of_the_whole_network_within_rounding(ran):
    expected = fl_large(plan(), 3)
    start = split_network.weights(node_configs.network(plan()))
    for name, array in ran["sfl-edge"][0].items():
        moved = np.abs(expected[name] - start[name]).max()
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-3 * moved, err_msg=name)


def test_a_round_says_what_each_device_did_and_sent(ran):
    for method in ("sfl-cloud", "sfl-edge"):
        for number, (work, time) in enumerate(ran[method][1], 1):
            sampled = node_configs.sampled(plan(), number)
            assert work.number == number
            assert [each.device for each in work.devices] == sampled
            assert {each.samples for each in work.devices} == {104}
            assert all(each.up["ActivationBatch"] > each.down["GlobalModel"] > 0 for each in work.devices)
            assert 0 < work.loss < 5
            assert sorted(time.arrivals) == sampled
            assert time.seconds > 0


def test_only_halves_at_an_edge_cross_a_link(ran):
    for work, _ in ran["sfl-cloud"][1]:
        assert (work.overlays, work.overlays_down) == ((), ())
    for number, (work, _) in enumerate(ran["sfl-edge"][1], 1):
        sampled = node_configs.sampled(plan(), number)
        used = [any(device in group for device in sampled) for group in plan().groups()]
        size = sum(array.nbytes for array in half(ran["sfl-edge"][0], "head").values())
        for sizes in (work.overlays, work.overlays_down):
            assert [each > size for each in sizes] == used


def test_it_learns(ran):
    for method in ("sfl-cloud", "sfl-edge"):
        _, rounds, accuracies = ran[method]
        assert rounds[-1][0].loss < rounds[0][0].loss
        assert accuracies["model"] > 20


def test_a_run_that_goes_on_gives_the_same_bits(ran, tmp_path):
    first = method(plan(), tmp_path)
    first.round(1)
    first.save(tmp_path)
    again = method(plan(), tmp_path)
    again.load(tmp_path)
    rounds = [again.round(number) for number in (2, 3)]
    assert same(state(again), ran["sfl-cloud"][0])
    assert rounds == ran["sfl-cloud"][1][1:]
    assert again.accuracies() == ran["sfl-cloud"][2]


def test_a_round_whose_workers_die_is_done_again_and_three_times_at_most(ran, tmp_path, monkeypatch):
    dying = []

    def run(pool, jobs):
        if dying:
            dying.pop()
            raise WorkerLost("worker 0 was ended by SIGKILL")
        return answers(pool, jobs)

    answers = LocalPool.run
    monkeypatch.setattr(LocalPool, "run", run)
    made = method(plan(), tmp_path)
    dying += [1, 1]
    assert made.round(1) == ran["sfl-cloud"][1][0]
    dying += [1, 1, 1]
    before = state(made)
    with pytest.raises(WorkerLost):
        made.round(2)
    assert same(state(made), before)
    assert [made.round(2), made.round(3)] == ran["sfl-cloud"][1][1:]


def test_devices_that_drop_out_are_left_out_of_the_mean(tmp_path):
    settings = plan()
    made = method(settings, tmp_path, where=DROPPING)
    work, time = made.round(1)
    dropped = [device for device in node_configs.sampled(settings, 1) if DROPPING.drops(settings, 1, device)]
    assert 0 < len(dropped) < 4
    assert len(work.devices) == 4
    assert not time.arrivals.keys() & set(dropped)
    assert time.seconds == sum(time.parts.values()) == DROPPING.deadline_s
    assert {each.device for each in work.devices if "Update" not in each.up} == set(dropped)
    assert same(state(made), fl_large(settings, 1, DROPPING))


def test_a_round_without_a_usable_update_ends_the_run_and_changes_nothing(tmp_path):
    made = method(plan(training=Training(lr=10)), tmp_path)
    before = state(made)
    with pytest.raises(QuorumError, match="round 1: of 4 devices none"):
        made.round(1)
    assert same(state(made), before)


def test_a_checkpoint_is_checked_before_it_is_believed(tmp_path):
    made = method(plan(), tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        made.load(tmp_path)
    made.save(tmp_path)
    file = tmp_path / "split.safetensors"
    good, before = file.read_bytes(), state(made)
    for bad in (b"", good[:-1], good[:500] + b"?" + good[501:], b"junk" * 100):
        file.write_bytes(bad)
        with pytest.raises(DataError, match=r"split\.safetensors: is (cut or damaged|a file of another)"):
            made.load(tmp_path)
    method(plan(model=Model(name="cnn")), tmp_path).save(tmp_path)
    with pytest.raises(DataError, match="of another plan"):
        made.load(tmp_path)
    assert same(state(made), before)
    file.write_bytes(good)
    made.load(tmp_path)
    assert same(state(made), before)
    (tmp_path / "model.frame").touch()
    with pytest.raises(ConfigError, match="was written by another version"):
        made.load(tmp_path)
