"""What each tensor of a state is, by what a pass in training does to it; and with that no mask, counter, variance or second
name breaks a round or an overlay, and no hostile device can use one."""

import numpy as np
import pytest
import torch
from fleet import MODEL
from torch import nn
from torch.nn.utils import parametrizations
from updates import RULES, rounds

from cloud_app.aggregation import aggregator
from cloud_app.rounds.node import CloudNode
from cloud_app.rounds.state import begin
from edge_app.overlay.batch_filter import FilterState
from edge_app.overlay.checkpoint import CheckpointFile
from edge_app.overlay.trainer import Trainer
from emo.config import CloudConfig, Overlay
from emo.errors import ModelError, UpdateRefused
from emo.journal import Journal
from emo.models import split_network
from emo.models.state import Layout, layout, unsound
from emo.wire.compression import restore, shrink
from emo.wire.messages import Refused, Status, Update

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = tuple("abcde")
CONSTANT = ("mask", "table", "hole", "empty", "frozen.weight", "frozen.bias")


class Odd(nn.Module):
    """Of everything that a state_dict may hold, one."""

    def __init__(self):
        super().__init__()
        self.norm, self.seen = nn.BatchNorm1d(3), nn.InstanceNorm1d(1, track_running_stats=True)
        self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.spectral = parametrizations.spectral_norm(nn.Linear(3, 4))
        self.register_buffer("mask", torch.tensor([[0.0, -torch.inf], [0.0, -1e9]]))
        self.register_buffer("table", torch.arange(3))
        self.register_buffer("hole", torch.tensor([torch.nan, 1.0]))
        self.register_buffer("passes", torch.tensor([0, 5], dtype=torch.int32))
        self.register_buffer("begun", torch.tensor(False))
        self.register_buffer("empty", torch.zeros(0, 2))
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        if self.training:
            self.passes = self.passes + torch.tensor([2, 0], dtype=torch.int32)
            self.begun.fill_(True)
        x = self.norm(self.norm(x))[:, self.table]
        x = self.seen(x[:, None])[:, 0] + (x[:, None, :2] + self.mask).softmax(-1).std((1, 2))[:, None]
        return self.spectral(self.drop(self.b(self.a(self.frozen(x)))))


def odd():
    torch.manual_seed(0)
    return Odd()


def test_a_pass_in_training_tells_what_each_tensor_is():
    module = odd()
    module.norm.eval()
    before, random = split_network.weights(module), torch.random.get_rng_state()
    found = layout(module, (3,))
    assert found.constants == {*CONSTANT, "seen.num_batches_tracked"}  # torch counts there no more
    assert found.tied == {"b.weight": "a.weight"}
    # `norm` is passed twice.
    assert found.counters == {"norm.num_batches_tracked": 2, "passes": 2}
    trained = found.trained(before)
    assert {"norm.running_var", "begun", "spectral.parametrizations.weight.0._u"} <= trained.keys()
    assert found.whole(trained, before).keys() == before.keys()
    after = split_network.weights(module)
    assert all(after[name].tobytes() == array.tobytes() for name, array in before.items())
    assert (module.training, module.norm.training) == (True, False)
    assert torch.equal(torch.random.get_rng_state(), random)


def test_a_network_that_cannot_train_on_three_samples_is_said():
    with pytest.raises(ModelError, match=r"cannot train on three samples of shape \[3\]"):
        layout(nn.Linear(4, 3), (3,))


def test_of_the_networks_of_our_own_everything_is_trained():
    net = split_network.network(MODEL, 0)
    assert layout(net, MODEL.input) == Layout()


# -- federated learning


class Round:
    """A round of five devices with the `Odd` network: what each sends, and what it comes to."""

    def __init__(self, **settings):
        self.module = odd()
        self.start = split_network.weights(self.module)
        what = layout(self.module, (3,))
        said = {"rounds": 2, "min_devices": 5, "quorum": 0.6, "deadline_s": 10, "attackers": 0} | settings
        config = CloudConfig.model_validate(
            {"model": MODEL, "rounds": said, "training": {"epochs": 2}, "overlays": {"start_s": 0}}
        )
        self.node = CloudNode(config, begin(config, "run", self.start), Journal(), layout=what)
        for name in NAMES:
            list(self.node.handle(Status(name, "device", online=True, samples=4), 0))

    def trained(self, seed=0, form="fp32", **changes):
        """A device's weights after 8 passes, with these instead of its own."""
        module, generator = odd(), torch.Generator().manual_seed(seed)
        optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.01)
        for _ in range(8):
            module(torch.randn(4, 3, generator=generator)).square().mean().backward()
            optimizer.step()
        state = split_network.weights(module)
        state |= {n: np.full(state[n].shape, value, state[n].dtype) for n, value in changes.items()}
        return shrink(state, form, self.start)

    def send(self, name, weights, form="fp32", samples=4):
        update = Update("run", name, self.node.state.round, samples, 0.5, weights, form)
        return [m.reason for m in self.node.handle(update, 1) if isinstance(m, Refused)]


@pytest.mark.parametrize("form", ["fp32", "fp16", "delta-fp16", "delta-int8"])
@pytest.mark.parametrize("aggregate", RULES)
def test_a_round_of_honest_devices_keeps_what_is_constant_and_counts_on(aggregate, form):
    this = Round(aggregate=aggregate)
    for seed, name in enumerate(NAMES):
        assert this.send(name, this.trained(seed, form), form) == []
    assert this.node.state.round == 2
    start, found = this.start, this.node.state.weights
    for name in CONSTANT:
        assert found[name].tobytes() == start[name].tobytes()
    assert found["norm.num_batches_tracked"] == 16
    assert found["passes"].tolist() == [16, 5]
    assert found["begun"]
    assert found["a.weight"].tobytes() == found["b.weight"].tobytes() != start["a.weight"].tobytes()
    assert (found["norm.running_var"] != start["norm.running_var"]).any()
    split_network.load(this.module, found)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("norm.num_batches_tracked", 2**53 - 1, "is 9007199254740991, and was 0 when the round began"),
        ("norm.num_batches_tracked", 17, "make 8 batches at most"),
        ("passes", 2**31 - 1, "make 8 batches"),
        ("norm.running_var", -5, "variance below zero"),
        ("norm.running_mean", np.nan, "NaN"),
        ("norm.running_mean", 1e4, "changes the model by"),
        ("mask", np.nan, "mask holds NaN"),
    ],
)
@pytest.mark.parametrize("aggregate", RULES)
def test_state_that_no_training_makes_is_refused(aggregate, name, value, why):
    this = Round(aggregate=aggregate)
    ((reason),) = this.send("a", this.trained(**{name: value}))
    assert why in reason
    for seed, each in enumerate(NAMES[1:]):
        assert this.send(each, this.trained(seed)) == []
    list(this.node.tick(11))
    list(this.node.tick(22))
    assert this.node.state.round == 2  # and the others go on, in the next round too
    assert this.node.state.weights["norm.num_batches_tracked"] == 16


def test_what_training_leaves_alone_is_everybodys_own():
    this = Round()
    lies = {"table": 99, "mask": 7.0, "frozen.weight": 1.0, "b.weight": 3.0}
    assert this.send("a", this.trained(0, **lies)) == []
    honest = Round()
    assert honest.send("a", honest.trained(0)) == []
    for each in (this, honest):
        for seed, name in enumerate(NAMES[1:]):
            each.send(name, each.trained(seed))
        assert each.node.state.round == 2
    for name, array in honest.node.state.weights.items():
        assert this.node.state.weights[name].tobytes() == array.tobytes(), name


def test_a_counter_that_was_not_counted_takes_nothing_back():
    this = Round()
    start = {"norm.num_batches_tracked": np.array(40), "passes": np.array([80, 5], np.int32)}
    what = this.node._layout
    total = aggregator.init(rounds(), this.start | start, 1, layout=what)
    total.add("a", this.start, 4, 8)
    found = total.result().weights
    assert found["norm.num_batches_tracked"] == 40
    assert found["passes"].tolist() == [80, 5]


def test_the_passes_of_a_round_are_its_samples_times_its_epochs():
    what = Layout(counters={"n": 3})
    start = {"n": np.array(10, np.uint8)}
    what.check(start, {"n": np.array(10 + 3 * 8, np.uint8)}, 8)
    with pytest.raises(UpdateRefused, match="8 batches at most"):
        what.check(start, {"n": np.array(11 + 3 * 8, np.uint8)}, 8)
    what.check(start, {"n": np.array(255, np.uint8)}, 10**9)


# -- the overlay


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.triu(torch.full((6, 6), -torch.inf), 1))
        self.a, self.b, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.b.weight = self.a.weight
        self.last = nn.Linear(6, 4)

    def forward(self, x):
        return self.last(self.norm(self.b(self.a((x[:, None] + self.mask).softmax(-1)[:, -1]))))


def masked():
    torch.manual_seed(0)
    return Masked()


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 6, generator=generator), torch.arange(16) % 4


def test_an_overlay_with_a_mask_of_infinities_trains_and_comes_back_from_its_checkpoint(tmp_path):
    settings = Overlay(lr=0.05, checkpoint_steps=4)
    trainer = Trainer(masked(), settings)
    for seed in range(10):
        trainer.step([batch(seed)])
    assert (trainer.steps, trainer.refused_steps, trainer.rollbacks) == (10, 0, 0)
    assert trainer.kept.steps == 8
    broken = batch(0)[0].clone()
    broken[0, 0] = torch.nan
    assert np.isnan(trainer.step([(broken, batch(0)[1])])[0])  # what the batch itself brings is still refused
    file = CheckpointFile(tmp_path, journal := Journal())
    file.save("run", trainer.state(), {}, FilterState())
    file.close()
    again = Trainer(masked(), settings)
    again.load(file.load("run", again.state()).state)
    assert again.steps == 10
    assert not journal.counts
    bad = trainer.state()
    bad.arrays["weights/last.weight"][0] = torch.nan
    assert not bad.finite(again.kept)
    file.save("run", bad, {}, FilterState())
    file.close()
    assert file.load("run", again.kept) is None


def test_tied_weights_of_an_overlay_are_sent_as_they_were_averaged():
    trainer = Trainer(masked(), Overlay(lr=0.1, average=0.9))
    for seed in range(10):
        trainer.step([batch(seed)])
    sent = trainer.weights()
    assert sent["b.weight"].tobytes() == sent["a.weight"].tobytes()
    module = masked()
    split_network.load(module, sent)
    assert all(array.tobytes() == sent[name].tobytes() for name, array in split_network.weights(module).items())
    assert trainer.evaluate([batch(99)]) == pytest.approx(Trainer(module, Overlay()).evaluate([batch(99)]))


def test_what_is_unsound_is_named():
    start = split_network.weights(masked())
    assert unsound(start, start) == ""
    for name, value, why in (
        ("last.bias", np.inf, "last.bias holds NaN or infinity"),
        ("norm.running_var", -1.0, "norm.running_var has a variance below zero"),
    ):
        assert unsound(start, start | {name: np.full_like(start[name], value)}) == why


def test_infinities_cross_the_wire_in_every_form():
    start = split_network.weights(masked())
    for form in ("fp32", "fp16", "delta-fp16", "delta-int8"):
        back = restore(shrink(start, form, start), form, start)
        assert np.isneginf(back["mask"]).sum() == (0 if "delta" in form else 15)  # a constant is not looked at
