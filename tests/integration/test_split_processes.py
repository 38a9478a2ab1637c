"""Split federated learning in processes of its own: the same bits with any number of them, and when one is killed."""

import os
import signal

import numpy as np

from emo.config import Data, Model, Training
from emo.data import registry
from testbed.plan import Plan
from testbed.splitfed.splitfed import Split
from testbed.timing import scenario

PLAN = Plan(
    method="sfl-edge",
    model=Model(name="cnn", width=0.5),
    devices=6,
    per_round=4,
    samples=52,
    training=Training(lr=0.05),
)


def run(folder, workers, kill):
    made = Split(PLAN, scenario.load(None), *registry.load(Data()), workers, folder)
    try:
        rounds = [made.round(1)]
        processes = made._pool.pids()
        if kill:
            os.kill(processes[0], signal.SIGKILL)
        rounds.append(made.round(2))
        assert (made._pool.pids() != processes) == kill
        return rounds, made.weights()
    finally:
        made.close()
        made.close()


def test_neither_their_number_nor_the_death_of_one_changes_a_bit(tmp_path):
    (one, weights), (two, others) = (run(tmp_path, workers, workers == 2) for workers in (1, 2))
    assert one == two
    for part, arrays in weights.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(others[part][name], array)
