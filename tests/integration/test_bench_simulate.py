"""What bench.simulate times does the same work: the plain loop and ours end a round with the same model."""

import contextlib

import numpy as np

from bench import simulate as bench
from testbed.simulation import run
from testbed.timing import scenario


def test_the_plain_loop_and_the_fleet_give_the_same_model(tmp_path):
    asked = bench.plan(8).model_copy(update={"devices": 4, "per_round": 2})
    training = bench.dataset(None)
    plain = bench.Plain(asked, training)
    method = run.make(asked, scenario.load(None), training, training, 1, "cpu", tmp_path)
    with contextlib.closing(method):
        for number in (1, 2):
            method.round(number)
            plain.round()
        found = {f"{p}.{name}": each for p, part in method.weights().items() for name, each in part.items()}
    assert found.keys() == plain.weights.keys()
    assert all(np.allclose(found[name], value.numpy(), atol=1e-5) for name, value in plain.weights.items())
