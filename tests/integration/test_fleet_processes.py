"""The simulated fleet in processes of its own: the same bits with any number of them, and when one is killed."""

import os
import signal
import threading
import time

from emo.config import Model, Training
from emo.data import registry
from testbed.fleet.fleet import Fleet
from testbed.plan import Plan
from testbed.timing import scenario

PLAN = Plan(
    method="emo",
    model=Model(name="cnn", width=0.5, input=(1, 8, 8)),
    devices=6,
    per_round=4,
    rounds=3,
    samples=150,
    training=Training(lr=0.05),
)


def run(folder, workers, method="emo", meanwhile=lambda _fleet, _number: None):
    folder.mkdir()
    training, test = registry.load(PLAN.data)
    fleet = Fleet(PLAN.model_copy(update={"method": method}), scenario.load(None), training, test, workers, folder)
    try:
        found = []
        for number in (1, 2, 3):
            meanwhile(fleet, number)
            work = fleet.round(number)
            bits = {
                f"{part}/{name}": array.tobytes()
                for part, weights in fleet.weights().items()
                for name, array in weights.items()
            }
            found.append((work, bits))
        return found, fleet.accuracies()
    finally:
        fleet.close()


def test_neither_the_number_of_processes_nor_one_that_is_killed_changes_a_bit(tmp_path):
    killed = []

    def kill(fleet, number):
        def soon():
            time.sleep(0.02 * number)
            killed.append(fleet._pool.pids()[number % 2])
            os.kill(killed[-1], signal.SIGKILL)

        if number > 1:
            threading.Thread(target=soon).start()

    assert run(tmp_path / "two", 2, meanwhile=kill) == run(tmp_path / "one", 1)
    assert len(killed) == 2
