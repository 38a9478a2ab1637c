"""A training that was interrupted gives the bits of one that was not."""

import numpy as np
import pytest
import torch
from overlays import KNOWN, SAMPLER, batches, saved, trained

from edge_app.overlay.checkpoint import CheckpointFile, State
from emo.errors import ModelError
from emo.journal import Journal

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def file(tmp_path):
    with CheckpointFile(tmp_path, Journal()) as made:
        made.folder, made.journal = tmp_path, made._journal
        yield made


def test_ten_steps_a_file_and_ten_steps_are_twenty_to_the_bit(file):
    straight, first = trained(20), trained(10)
    saved(file, first.state())
    second = trained()
    found = file.load("run-1", second.state())
    assert (found.sampler, found.filter) == (SAMPLER, KNOWN)
    second.load(found.state)
    assert second.steps == 10
    for step in range(10, 20):
        second.step(batches(step))
    for ours, theirs in ((second.state(), straight.state()), (second.kept, straight.kept)):
        assert (ours.steps, ours.random) == (theirs.steps, theirs.random)
        assert ours.arrays.keys() == theirs.arrays.keys()
        for name, array in ours.arrays.items():
            assert torch.equal(array, theirs.arrays[name]), name
    assert {name.partition("/")[0] for name in ours.arrays} == {"weights", "momentum", "mean"}
    assert file.journal.counts == {}


def test_a_state_is_a_copy_and_loading_it_does_not_tie_it_to_the_trainer():
    trainer = trained(3)
    state = trainer.state()
    before = {name: array.clone() for name, array in state.arrays.items()}
    other = trained()
    other.load(state)
    for each in (trainer, other):
        each.step(batches(3))
    assert all(torch.equal(array, before[name]) for name, array in state.arrays.items())
    assert all((trainer.weights()[name] == array).all() for name, array in other.weights().items())


def test_what_was_loaded_is_what_it_goes_back_to():
    state, trainer = trained(5).state(), trained()
    trainer.load(state)
    nan = [(torch.full((4, 3, 6, 6), float("nan")), torch.zeros(4, dtype=torch.int64))]
    for _ in range(10):
        trainer.step(nan)
    assert (trainer.steps, trainer.rollbacks) == (5, 1)
    assert torch.equal(trainer.state().arrays["weights/4.weight"], state.arrays["weights/4.weight"])


def test_a_state_of_another_module_changes_nothing():
    trainer, before = trained(2), trained(2).weights()
    with pytest.raises(ModelError, match=r"another overlay.*0\.bias"):
        trainer.load(trained(2, hidden=4).state())
    state = trained(3).state()
    with pytest.raises(ModelError, match="random"):
        trainer.load(State(3, state.arrays, {}))
    for name, value in trainer.weights().items():
        np.testing.assert_array_equal(value, before[name])
    assert trainer.steps == 2


def test_a_state_from_before_the_first_step_has_no_momentum_and_fits(file):
    trainer = trained(3)
    saved(file, trained().state())
    trainer.load(file.load("run-1", trainer.state()).state)
    assert trainer.step(batches(0)) == trained().step(batches(0))
