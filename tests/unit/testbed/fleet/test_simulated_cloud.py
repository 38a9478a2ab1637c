"""The simulated cloud: updates count when they come in time, the deadline closes a round, and it goes on where it was."""

from pathlib import Path

import numpy as np
import pytest
from fleet import MODEL

from emo.errors import QuorumError
from emo.models import split_network
from emo.wire.frame import OVERHEAD
from emo.wire.messages import GlobalModel, RunState, Update
from testbed import node_configs
from testbed.fleet.cloud import RUN, Cloud
from testbed.plan import Plan, RoundTime
from testbed.timing.round_time import until_closed
from testbed.workers import packets
from testbed.workers.packets import Sender

PLAN = Plan(method="fl-small", model=MODEL, devices=3, per_round=3, rounds=3)
WEIGHTS = split_network.weights(split_network.network(MODEL, 0))
UNIT = 1 / 128  # of all weights, in the values below: an update that goes further than rounds.max_norm is refused


def cloud(**options):
    return Cloud(PLAN, WEIGHTS, [10, 20, 30], 300.0, **options)


def update(device, number, value):
    weights = {name: np.full_like(array, value * UNIT) for name, array in WEIGHTS.items()}
    return Sender(number).encode(
        Update(RUN, node_configs.device_id(PLAN, device), number, 10 * (device + 1), 0.5, weights)
    )


def value(made):
    (found,) = {float(number) / UNIT for array in made.state.weights.values() for number in array.ravel()}
    return found


def test_all_updates_close_the_round_when_the_last_one_comes():
    made = cloud()
    seconds = made.close([(7.0, update(0, 1, 1)), (3.0, update(1, 1, 2)), (5.0, update(2, 1, 4))])
    assert seconds == 7.0
    assert value(made) == pytest.approx((10 * 1 + 20 * 2 + 30 * 4) / 60)
    assert made.close([(at, update(at, 2, 1)) for at in range(3)]) == 2.0
    assert made.now == 9.0
    (model,), (state,) = packets.decode(made.model), packets.decode(made.run_state)
    assert isinstance(model, GlobalModel)
    assert model.round == 3
    assert state == RunState(RUN, 3, 3, "training")
    made.close([(at, update(at, 3, 1)) for at in range(3)])
    assert made.node.done
    (state,) = packets.decode(made.run_state)
    assert state.phase == "done"


def test_it_tells_observers_nothing():
    made = cloud()
    made.close([(1.0, update(device, 1, 1)) for device in range(3)])
    assert made.state.history
    assert {name for name in made._journal.counts if name.startswith("sent.")} == {
        "sent.GlobalModel",
        "sent.RunState",
        "sent.Status",
    }
    plan = PLAN.model_copy(update={"method": "emo", "edges": (1.0,)})
    configs = [node_configs.device(plan, 0), node_configs.edge(plan, 0, Path()), node_configs.cloud(plan, 300.0, 600.0)]
    assert [config.report_s for config in configs] == [None, None, None]


def test_what_comes_after_the_deadline_does_not_count():
    made = cloud()
    seconds = made.close([(310.0, update(0, 1, 1)), (3.0, update(1, 1, 2))])
    assert seconds == pytest.approx(300, abs=0.01)
    assert value(made) == 2
    assert made.close([(1.0, update(d, 2, 1)) for d in range(3)]) == pytest.approx(1)


def test_where_nobody_was_in_time_the_first_one_closes_the_round():
    made = cloud()
    assert made.close([(310.0, update(0, 1, 1)), (320.0, update(1, 1, 2))]) == 310.0
    assert value(made) == 1


def test_a_cloud_that_hears_nothing_gives_up():
    with pytest.raises(QuorumError, match="0 of 3"):
        cloud().close([])


def test_it_goes_on_from_a_round_and_a_time():
    first = cloud()
    first.close([(1.0, update(d, 1, d)) for d in range(3)])
    then = Cloud(PLAN, first.state.weights, [10, 20, 30], 300.0, number=2, now=first.now)
    assert [data[OVERHEAD:] for _, data in then.model] == [data[OVERHEAD:] for _, data in first.model]
    assert then.close([(1.0, update(d, 2, d)) for d in range(3)]) == 1.0
    over = Cloud(PLAN, first.state.weights, [10, 20, 30], 300.0, number=4)
    assert not over.model


def test_the_time_of_a_round_is_until_the_cloud_closes_it():
    time = RoundTime(10.0, {0: 4.0, 1: 9.0}, {"compute": 9.0, "activations queue": 1.0}, {"overlay-1": 2.0})
    assert until_closed(time, 9.0) is time
    waited = until_closed(time, 300.0)
    assert (waited.seconds, sum(waited.parts.values())) == (300.0, 300.0)
    cut = until_closed(time, 5.0)
    assert (cut.seconds, cut.arrivals, sum(cut.parts.values())) == (5.0, {0: 4.0}, 5.0)
    assert cut.beside == time.beside
