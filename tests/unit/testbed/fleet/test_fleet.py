"""The simulated fleet, its workers in this process: rounds, bytes, drop-outs, resuming, rounds that are done again."""

import dataclasses
import tempfile
from pathlib import Path

import pytest
from pools import LocalPool

from emo.config import Cache, Model, Overlay, Training
from emo.data import registry
from emo.errors import ConfigError, DataError, EmoError, QuorumError
from emo.wire.messages import GlobalModel
from testbed import node_configs
from testbed.fleet import fleet
from testbed.fleet.messages import FinishEdge, ReadOverlay, TrainDevice, TrainEdge
from testbed.plan import Plan
from testbed.timing import scenario
from testbed.workers import packets

pytestmark = pytest.mark.usefixtures("one_thread")

PAPER = scenario.load(None)
PLAN = Plan(
    method="emo",
    model=Model(name="cnn", width=0.5, input=(1, 8, 8)),
    devices=6,
    per_round=4,
    rounds=4,
    samples=50,
    training=Training(lr=0.05),
    overlay=Overlay(lr=0.05, mixup=0.2, checkpoint_steps=5),
    cache=Cache(sampling="importance"),
    fresh_rounds=1,
)


def plan(method):
    return PLAN.model_copy(update={"method": method})


@pytest.fixture
def make(tmp_path, monkeypatch):
    training, test = registry.load(PLAN.data)
    made = []

    def build(plan=PLAN, workers=1, where=PAPER, pool=LocalPool):
        monkeypatch.setattr(fleet, "Pool", pool)
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        made.append(fleet.Fleet(plan, where, training, test, workers, folder))
        return made[-1]

    yield build
    for each in made:
        each.close()


def bits(method):
    return {
        f"{part}/{name}": array.tobytes()
        for part, weights in method.weights().items()
        for name, array in weights.items()
    }


def rounds(method, numbers):
    return [(*method.round(number), bits(method)) for number in numbers]


METHODS = pytest.mark.parametrize("method", ["fl-small", "fl-large", "emo"])


@METHODS
def test_the_number_of_workers_changes_no_bit(make, method):
    one, three = make(plan(method)), make(plan(method), workers=3)
    assert rounds(one, (1, 2)) == rounds(three, (1, 2))
    assert one.accuracies() == three.accuracies()


@METHODS
def test_a_run_that_was_saved_and_loaded_goes_on_with_the_same_bits(make, method, tmp_path):
    whole = rounds(make(plan(method)), (1, 2, 3, 4))
    first, saved = make(plan(method)), tmp_path / "saved"
    rounds(first, (1, 2))
    saved.mkdir()
    first.save(saved)
    rounds(first, (3,))  # what goes on changes nothing of what was saved
    then = make(plan(method), workers=2)
    then.load(saved)
    assert bits(then) == whole[1][2]
    assert rounds(then, (3, 4)) == whole[2:]
    assert then.accuracies()["model"] > 100 / 10


def test_a_run_goes_back_to_what_it_has_saved_itself(make, tmp_path):
    one = make()
    rounds(one, (1,))
    one.save(tmp_path)
    after = rounds(one, (2, 3))
    one.load(tmp_path)
    assert rounds(one, (2, 3)) == after


@pytest.mark.parametrize("kind", [TrainDevice, TrainEdge, FinishEdge, ReadOverlay])
def test_a_round_whose_worker_dies_is_done_again(make, kind):
    done = []

    class Mortal(LocalPool):
        @staticmethod
        def dies(found):
            done.extend([found] if found == kind else [])
            return found == kind and len(done) in {2, 3}

    assert rounds(make(pool=Mortal), (1, 2, 3, 4)) == rounds(make(), (1, 2, 3, 4))
    assert len(done) > 3


def test_workers_that_keep_dying_end_the_run(make):
    class Dying(LocalPool):
        @staticmethod
        def dies(_kind):
            return True

    with pytest.raises(EmoError, match="died"):
        make(pool=Dying).round(1)


def test_emo_leaves_the_small_model_as_it_is(make):
    small, emo = make(plan("fl-small")), make()
    for number in (1, 2):
        small.round(number)
        emo.round(number)
        mine, theirs = emo.weights()["trunk"], small.weights()["trunk"]
        assert all(mine[name].tobytes() == theirs[name].tobytes() for name in theirs)


def test_the_devices_are_those_that_the_cloud_asks(make):
    small = make(plan("fl-small"))
    for number in (1, 2, 3):
        (model,) = packets.decode(small._cloud.model)
        assert isinstance(model, GlobalModel)
        names = [node_configs.device_id(PLAN, device) for device in node_configs.sampled(PLAN, number)]
        assert list(model.devices) == names
        work, _ = small.round(number)
        assert [node_configs.device_id(PLAN, each.device) for each in work.devices] == names


def test_bytes_are_those_of_frames_and_kinds(make):
    emo = make()
    model = sum(array.nbytes for array in emo._cloud.state.weights.values())
    work, _ = emo.round(1)
    assert work.attempted == work.sent == 4 * 4  # 50 samples make four batches; all of them are new
    for each in work.devices:
        assert (each.batches, each.samples) == (4, 50)
        assert model < each.down["GlobalModel"] < 1.1 * model + 3000
        assert model < each.up["Update"] < 1.1 * model + 3000
        assert each.up["ActivationBatch"] > 4 * 200
        assert each.down["Interval"] > 4 * 50
    assert sum(work.steps) == 4 * 4  # four batches a step, four replays of each
    assert work.overlays == ()
    for number in (2, 3):
        later, _ = emo.round(number)
    assert later.sent < later.attempted
    last, time = emo.round(4)
    assert last.sent == last.attempted  # a fresh round
    assert len(last.overlays) == 2
    assert "overlay-1" in time.beside


def test_who_drops_out_is_missing_from_the_mean_and_waited_for(make):
    where = PAPER.model_copy(update={"drop_outs": 0.1})
    some = PLAN.model_copy(update={"method": "fl-small", "per_round": 6, "rounds": 30})
    lossy, whole = make(some, where=where), make(some)
    dropped = [device for device in node_configs.sampled(some, 1) if where.drops(some, 1, device)]
    assert 0 < len(dropped) < 6
    work, time = lossy.round(1)
    whole.round(1)
    assert bits(lossy) != bits(whole)
    assert not set(dropped) & set(time.arrivals)
    assert not any("Update" in each.up for each in work.devices if each.device in dropped)
    assert time.parts["waiting"] > 100
    assert sum(time.parts.values()) == pytest.approx(time.seconds)


def test_too_many_drop_outs_end_the_run(make):
    where = PAPER.model_copy(update={"drop_outs": 0.999})
    with pytest.raises(QuorumError, match="missing: device-"):
        make(plan("fl-small"), where=where).round(1)


def test_what_cannot_be_simulated_is_refused(make):
    with pytest.raises(ConfigError, match=r"overlay\.budget"):
        make(PLAN.model_copy(update={"overlay": Overlay(budget="time")}))
    with pytest.raises(DataError, match=r"model\.input"):
        make(PLAN.model_copy(update={"model": Model(name="cnn", input=(3, 8, 8))}))


@pytest.mark.parametrize(
    "name",
    ["fleet.safetensors", "devices/{}", "edge-1/edge.safetensors"],
)
@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_a_damaged_checkpoint_is_refused(make, tmp_path, name, how):
    one, saved = make(), tmp_path / "saved"
    rounds(one, (1, 2, 3))
    saved.mkdir()
    one.save(saved)
    asked = {device for number in (1, 2, 3) for device in node_configs.sampled(PLAN, number)}
    device = next(device for device in node_configs.sampled(PLAN, 4) if device in asked)
    path = saved / name.format(node_configs.device_id(PLAN, device))
    content = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        path.write_bytes(content[:9] + bytes([content[9] ^ 0x55]) + content[10:])
    then = make()

    def go_on():
        then.load(saved)
        then.round(4)

    with pytest.raises(EmoError):
        go_on()


def test_a_checkpoint_of_an_older_version_is_refused(make, tmp_path):
    make().save(tmp_path)
    (tmp_path / "fleet.safetensors").rename(tmp_path / "fleet.json")
    with pytest.raises(ConfigError, match=r"was written by another version .*begin another one"):
        make().load(tmp_path)


def test_a_checkpoint_of_another_network_is_refused(make, tmp_path):
    make(plan("fl-large")).save(tmp_path)
    with pytest.raises(DataError, match="of another plan"):
        make(plan("fl-small")).load(tmp_path)


def test_states_are_only_of_devices_that_were_sampled(make):
    emo = make(PLAN.model_copy(update={"devices": 100, "samples": 10, "per_round": 3}))
    work, _ = emo.round(1)
    names = {node_configs.device_id(emo._plan, each.device) for each in work.devices}
    assert {path.name for path in emo._devices.iterdir()} == names
    assert dataclasses.asdict(work)["devices"][0]["samples"] == 10
