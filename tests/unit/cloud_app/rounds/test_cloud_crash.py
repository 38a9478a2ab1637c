"""The cloud dies at any step of a run, and its next process ends the run with the same bits."""

import json
import os
from dataclasses import dataclass, field

import numpy as np
import pytest
from fleet import MODEL
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_app.rounds.checkpoint import Checkpoints
from cloud_app.rounds.node import CloudNode, Host
from cloud_app.rounds.state import begin
from emo.config import CloudConfig
from emo.errors import QuorumError
from emo.journal import Journal
from emo.models import split_network
from emo.wire.compression import digest
from emo.wire.messages import GlobalModel, OverlayWeights, Refused, RunState, Status, Update

DEVICES = ("a", "b", "c", "d")
CONFIG = CloudConfig.model_validate(
    {
        "model": MODEL,
        "rounds": {"rounds": 3, "min_devices": 4, "per_round": 3, "quorum": 1.0, "give_up_s": 500},
        "overlays": {"edges": ["e", "f"], "start_s": 0},
    }
)
OVERLAY = split_network.weights(split_network.overlay(MODEL, 0))
START = {"w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "steps": np.array(3)}


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _handle: None)  # nobody cuts the power here


class DiedError(Exception):
    pass


@dataclass
class World:
    """What outlives a cloud: its folder, the broker's queue and retained messages, the devices. `deaths`: numbers of
    the steps at which the cloud dies; a step is a checkpoint begun or ended, a message out, one in and acknowledged."""

    folder: object
    deaths: frozenset[int] = frozenset()
    config: CloudConfig = CONFIG
    queue: list = field(default_factory=list)
    held: dict = field(default_factory=dict)  # what devices trained last
    models: list = field(default_factory=list)  # as published: round, digest
    now: float = 0.0
    steps: int = 0
    node: CloudNode | None = None
    finishing: bool = False
    always: bool = False  # a checkpoint after every update
    journal: Journal = field(default_factory=Journal)

    def step(self):
        self.steps += 1
        if self.steps in self.deaths:
            raise DiedError

    def born(self):
        keep = Checkpoints(self.folder / "run", self.journal)
        state = keep.load(self.config, START) or begin(self.config, "run-1", START)
        self.node = CloudNode(self.config, state, self.journal, Host(checkpoints=keep))
        real = keep.save

        def save(state):
            self.step()
            done = real(state)
            self.step()
            return done

        keep.save = save
        keep.due = lambda: self.always
        here = [Status(name, "device", online=True, samples=4) for name in DEVICES]
        self.queue = here + [each for each in self.queue if not isinstance(each, Status)]

    def out(self, messages):
        for message in messages:
            self.step()
            if isinstance(message, GlobalModel):
                self.models.append((message.round, digest(message.weights)))
                self.queue += [self.train(name, message) for name in message.devices]
            elif isinstance(message, RunState) and message.phase == "finishing" and not self.finishing:
                self.finishing = True  # an edge says it once
                self.queue += [overlay(edge) for edge in self.config.overlays.edges]
            else:
                assert not isinstance(message, Refused), message

    def train(self, name, model):
        if self.held.get(name, (0,))[:2] != (model.round, digest(model.weights)):
            moved = {
                "w": model.weights["w"] * np.float32(0.9) + np.float32(ord(name) / 777 + model.round / 13),
                "steps": np.asarray(model.weights["steps"] + ord(name) % 3),
            }
            said = Update("run-1", name, model.round, 3 + ord(name) % 5, 0.25, moved)
            self.held[name] = (model.round, digest(model.weights), said)
        return self.held[name][2]

    def live(self):
        """Until the run has ended; how often the cloud has died."""
        died = 0
        while True:
            try:
                self.born()
                while not self.node.done:
                    self.now += 1
                    self.out(self.node.tick(self.now))
                    if self.queue:
                        self.out(self.node.handle(self.queue[0], self.now))
                        self.step()
                        self.queue.pop(0)  # the acknowledgement
            except DiedError:
                died += 1
            else:
                return died


def overlay(edge, steps=5):
    weights = {name: array + np.float32(ord(edge)) for name, array in OVERLAY.items()}
    return OverlayWeights("run-1", edge, steps, 9, 7, weights)


def ended(world):
    state = world.node.state
    parts = {edge: digest(weights) for edge, weights in state.overlay_weights.items()}
    weights = {name: array.tobytes() for name, array in state.weights.items()}
    return weights, parts, state.trained, state.updates, state.round


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("undisturbed"))
    assert world.live() == 0
    assert world.node.state.updates == 9
    return ended(world), world.models, world.steps


def as_undisturbed(world, undisturbed):
    result, models, _ = undisturbed
    assert ended(world) == result
    assert sorted(set(world.models)) == sorted(set(models))  # devices have never seen another model of a round
    rounds = [number for number, _ in world.models]
    assert rounds == sorted(rounds)  # and never an older one again


@pytest.mark.parametrize("always", [False, True], ids=["rounds only", "every update"])
def test_dead_at_each_step_once(tmp_path, undisturbed, always):
    for number in range(1, 100):
        world = World(tmp_path / str(number), frozenset([number]), always=always)
        if world.live() == 0:
            assert number > 30
            break
        as_undisturbed(world, undisturbed)


@settings(max_examples=40)
@given(deaths=st.frozensets(st.integers(1, 90), min_size=2, max_size=12), always=st.booleans())
def test_dead_again_and_again(tmp_path_factory, undisturbed, deaths, always):
    world = World(tmp_path_factory.mktemp("again"), deaths, always=always)
    world.live()
    as_undisturbed(world, undisturbed)


def half_way(folder, updates=2, always=True):
    """A world whose cloud has died in round 2 with so many updates counted."""
    world = World(folder, always=always)
    world.born()
    while world.node.state.round < 2 or len(world.node.state.opened.heard) < updates:
        world.now += 1
        world.out(world.node.tick(world.now))
        if world.queue:
            world.out(world.node.handle(world.queue.pop(0), world.now))
    return world


def test_who_is_counted_in_the_file_is_not_asked_again(tmp_path, undisturbed):
    world = half_way(tmp_path)
    counted, world.queue = set(world.node.state.opened.heard), []
    world.born()
    assert set(world.node.state.opened.heard) == counted
    asked = [m.devices for m in world.node.tick(world.now) if isinstance(m, GlobalModel)]
    assert asked == [tuple(name for name in world.node.state.opened.sampled if name not in counted)]
    for update in [world.held[name][2] for name in world.node.state.opened.sampled]:
        list(world.node.handle(update, world.now))
    assert world.journal.counts["updates.duplicate"] == 2
    assert world.node.state.updates == 6
    world.live()
    assert ended(world) == undisturbed[0]


def test_an_update_that_is_in_no_file_is_asked_for_and_counted_once(tmp_path, undisturbed):
    world = half_way(tmp_path, always=False)
    world.queue = []  # the broker has its acknowledgement: it will not come by itself
    world.born()
    assert not world.node.state.opened.heard
    world.live()
    assert ended(world) == undisturbed[0]


def test_a_resumed_round_waits_for_devices_that_have_not_said_yet_that_they_are_here(tmp_path):
    quick = CONFIG.model_copy(update={"rounds": CONFIG.rounds.model_copy(update={"quorum": 0.3})})
    world = half_way(tmp_path, updates=1)
    world.config, world.queue = quick, []
    world.born()
    world.queue = []
    list(world.node.tick(world.now))
    assert world.node.state.round == 2  # nobody has gone, as far as it knows
    list(world.node.tick(world.now + 74))
    assert world.node.state.round == 2
    list(world.node.tick(world.now + 76))  # nobody has come back either
    assert (world.node.state.round, world.node.state.phase) == (3, "waiting")
    assert world.node.state.updates == 4


def test_a_run_that_gave_up_goes_on_when_it_is_started_again(tmp_path, undisturbed):
    world = half_way(tmp_path)
    with pytest.raises(QuorumError):
        list(world.node.tick(world.now + 501))
    world.live()
    assert ended(world) == undisturbed[0]


def test_a_disk_that_is_full_ends_no_run_and_is_tried_again(tmp_path, monkeypatch, undisturbed):
    world, writes = World(tmp_path, always=True), []

    def full(*_args, **_options):
        writes.append(world.now)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("emo.files.write", full)
        world.live()
    assert ended(world) == undisturbed[0]
    assert len(writes) > 9
    assert world.journal.counts["checkpoint.unwritten"] == len(writes)


def test_an_overlay_with_fewer_steps_does_not_replace_one_with_more(tmp_path):
    world = World(tmp_path)
    world.live()
    for steps in (9, 4, 9):
        list(world.node.handle(overlay("e", steps), world.now))
    assert world.node.state.overlays["e"].steps == 9
    assert world.journal.counts["overlays.duplicate"] == 2


def test_a_round_that_was_closed_is_not_done_again_by_who_waits_for_the_next(tmp_path, undisturbed):
    world = half_way(tmp_path, always=False)
    world.node._host = Host(checkpoints=world.node._host.checkpoints, pause=lambda: True)
    while world.queue:
        world.out(world.node.handle(world.queue.pop(0), world.now))
    assert (world.node.state.round, world.node.state.phase, world.node.state.updates) == (3, "waiting", 6)
    world.born()
    assert (world.node.state.round, world.node.state.phase, world.node.state.updates) == (3, "waiting", 6)
    late = world.held[world.node.state.before[1][0]][2]
    assert [m for m in world.node.handle(late, world.now) if isinstance(m, Refused)] == []
    world.live()
    assert ended(world) == undisturbed[0]


def test_a_line_that_was_not_written_is_written_by_the_next_process(tmp_path):
    world = half_way(tmp_path)
    world.journal = Journal(tmp_path)
    world.node._report.write = lambda *_: False  # as if it had died before
    while world.queue:
        world.out(world.node.handle(world.queue.pop(0), world.now))
    world.born()
    list(world.node.tick(world.now))
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    (told,) = [line for line in lines if line["event"] == "round"]
    assert (told["round"], len(told["members"]), told["left_out"]) == (2, 3, {})
