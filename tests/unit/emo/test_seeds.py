"""Networks that draw random numbers while they train, as dropout does: the same bits, whoever else draws beside them."""

import threading

import numpy as np
import pytest
import torch
from fleet import dataset
from splits import batches, plan, same
from torch import nn

from device_app.node import DeviceNode
from edge_app.overlay.trainer import Trainer
from emo import seeds
from emo.config import Data, DeviceConfig, Model, Overlay, Training
from emo.data import registry
from emo.data.batches import Batch
from emo.errors import ModelError
from emo.journal import Journal
from emo.models import split_network
from emo.models.layers import Parts
from emo.wire.messages import ActivationBatch, GlobalModel, Update
from testbed import node_configs
from testbed.fleet.vmap_sgd import Stack
from testbed.splitfed.halves import Halves

pytestmark = pytest.mark.usefixtures("one_thread")


def dropout(spec):
    return Parts(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.3)),
        lambda: nn.Linear(16, spec.classes),
        lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, spec.classes)),
    )


def made_outside(spec):
    made = [nn.Sequential(nn.Flatten(), nn.Linear(64, 16)), *(nn.Linear(16, spec.classes) for _ in range(2))]
    return Parts(*(lambda module=module: module for module in made))


ONCE = [nn.Sequential(nn.Flatten(), nn.Linear(64, 16)), nn.Linear(16, 4), nn.Linear(16, 4)]


def made_once(_spec):
    return Parts(*(lambda module=module: module for module in ONCE))


def wrapped_once(_spec):
    return Parts(*(lambda module=module: nn.Sequential(module) for module in ONCE))


def one_for_all(_spec):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 64))
    return Parts(*[lambda: module] * 3)


def spec(name, classes=4):
    return Model(name=f"{__name__}:{name}", input=(1, 8, 8), classes=classes)


MODEL = spec("dropout")
START = split_network.weights(split_network.network(MODEL, 0))


def device(name="d", edge=None):
    return DeviceNode(DeviceConfig(id=name, model=MODEL, edge=edge), dataset(), Journal())


def asked(name="d", number=1):
    return GlobalModel("run", number, (name,), Training(lr=0.05, epochs=2), START)


def trained(node, name="d", number=1):
    (found,) = (m.weights for m in node.handle(asked(name, number), 0.0) if isinstance(m, Update))
    return found


def test_a_device_draws_the_same_whoever_draws_beside_it():
    alone, other = trained(device()), trained(device("e"), "e")
    assert not same(alone, other)
    assert not same(alone, trained(device(), number=2))
    before = torch.get_rng_state()
    assert same(alone, trained(device()))
    assert torch.equal(torch.get_rng_state(), before)
    nodes = [device(), device("e")]
    steps = [nodes[0].handle(asked(), 0.0), nodes[1].handle(asked("e"), 0.0)]
    found = {}
    while steps:  # by turns, and somebody draws in between
        for each in list(steps):
            torch.rand(1)
            message = next(each, steps)
            if message is steps:
                steps.remove(each)
            elif isinstance(message, Update):
                found[message.device] = message.weights
    assert same(found["d"], alone)
    assert same(found["e"], other)


def test_the_tap_changes_nothing_of_it():
    tapped = device(edge="edge")
    sent = list(tapped.handle(asked(), 0.0))
    assert sum(isinstance(m, ActivationBatch) for m in sent) > 1
    (update,) = (m for m in sent if isinstance(m, Update))
    assert same(update.weights, trained(device()))


def test_devices_that_train_at_once_draw_what_they_would_alone():
    names = ["d", "e", "f"]
    expected = {name: trained(device(name), name) for name in names}
    nodes, found = {name: device(name) for name in names}, {}
    start = threading.Barrier(len(names))

    def run(name):
        start.wait()
        for number in (3, 2, 1):
            found[name] = trained(nodes[name], name, number)

    threads = [threading.Thread(target=run, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(found[name], expected[name]) for name in names)


def test_what_draws_nothing_waits_for_nobody():
    quiet, loud = seeds.Draws(), seeds.Draws()
    for each, draw in ((quiet, lambda: None), (loud, lambda: torch.rand(1))):
        with each.seeded(1):
            draw()
    passed = []

    def step(draws):
        with draws.seeded(2):
            passed.append(draws)

    with loud.seeded(3):
        threads = [threading.Thread(target=step, args=(each,)) for each in (quiet, loud)]
        threads[0].start()
        threads[0].join(10)
        threads[1].start()
        threads[1].join(0.1)
        assert passed == [quiet]
    threads[1].join(10)
    assert passed == [quiet, loud]


def test_split_in_two_it_draws_as_in_one_piece():
    settings = plan("sfl-cloud", model=spec("dropout", 10))
    net = node_configs.network(settings)
    start = GlobalModel("run", 3, ("d",), settings.training, split_network.weights(net))
    halves = Halves(node_configs.network(settings)).round(start, batches(settings, 0), "d", "cloud")
    config = DeviceConfig(id="d", model=settings.model, batch_size=settings.batch_size)
    training, _ = registry.load(Data())
    node = DeviceNode(config, training, Journal(), net, batches(settings, 0))
    (update,) = (m for m in node.handle(start, 0.0) if isinstance(m, Update))
    assert same(halves.update.weights, update.weights)


def test_trained_together_it_draws_by_the_seed():
    net = split_network.network(MODEL, 0)
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    streams = [[Batch(0, images, torch.arange(8) % 4)] for _ in range(2)]
    found = []
    for seed in (1, 1, 2):
        torch.rand(1)
        stack = Stack(split_network.network(MODEL, 0))
        stack.load(split_network.weights(net), 2)
        list(stack.epoch(streams, Training(lr=0.05), seed))
        found.append([stack.weights(place) for place in range(2)])
    assert not same(*found[0])  # each device its own
    assert all(same(*pair) for pair in zip(found[0], found[1], strict=True))
    assert not same(found[0][0], found[2][0])


def overlay(seed=0, steps=0):
    trainer = Trainer(split_network.overlay(MODEL, 0), Overlay(lr=0.1, seed=seed, checkpoint_steps=3))
    go_on(trainer, 0, steps)
    return trainer


def go_on(trainer, first, last):
    for step in range(first, last):
        torch.rand(1)
        drawn = torch.Generator().manual_seed(step)
        trainer.step([(torch.rand(8, 16, generator=drawn), torch.arange(8) % 4)])


def test_an_overlay_draws_by_its_seed_and_goes_on_to_the_same_bits():
    whole = overlay(steps=10)
    assert same(whole.weights(), overlay(steps=10).weights())
    assert not same(whole.weights(), overlay(seed=1, steps=10).weights())
    first, second = overlay(steps=4), overlay()
    second.load(first.state())
    go_on(second, 4, 10)
    assert same(second.weights(), whole.weights())


def test_modules_made_outside_the_factories_follow_from_the_seed_too():
    chosen = spec("made_outside")
    for build in (split_network.network, split_network.overlay):
        first, again, other = (split_network.weights(build(chosen, seed)) for seed in (1, 1, 2))
        assert same(first, again)
        assert not same(first, other)


@pytest.mark.parametrize("name", ["made_once", "wrapped_once", "one_for_all"])
def test_a_module_that_is_given_twice_is_refused(name):
    with pytest.raises(ModelError, match=r"gave before.*build a new one each time"):
        [split_network.network(spec(name, 64 if name == "one_for_all" else 4), 0) for _ in range(2)]


def test_what_has_no_weights_may_be_shared(monkeypatch):
    relu = nn.ReLU()

    def shared(spec):
        return Parts(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), relu),
            *[lambda: nn.Sequential(relu, nn.Linear(16, spec.classes))] * 2,
        )

    monkeypatch.setitem(split_network.BUILT_IN, "shared", shared)
    for _ in range(2):
        split_network.network(Model(name="shared", input=(1, 8, 8)), 0)
    np.testing.assert_equal(split_network.split_shape(Model(name="shared", input=(1, 8, 8))), (16,))
