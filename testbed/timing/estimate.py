"""A round's bytes from the models alone: no data, no training, no framing."""

from functools import lru_cache

import numpy as np

from emo.config import Form
from emo.models import split_network
from emo.wire.codec import Packed
from emo.wire.compression import shrink
from emo.wire.messages import Weights
from testbed import node_configs
from testbed.plan import DeviceWork, Plan, RoundWork
from testbed.timing import costs
from testbed.timing.round_time import round_time
from testbed.timing.scenario import Scenario, on_device


def work(
    plan: Plan,
    samples: int,
    number: int = 1,
    *,
    sent: float = 1.0,
    compressed: bool = False,
    model: Form = "fp32",
) -> RoundWork:
    """Round `number` of `plan` with `samples` on each sampled device, raw fp32.

    EMO: `sent` is the share of the batches that the policy lets through; `compressed`: with the bytes that the plan's
    codec makes of noise, instead of fp32's. `model`: form of the global model; that of updates is the plan's.
    """
    cost = costs.of(plan.model)
    down, up = _models(plan, model)
    activations = samples * cost.split
    batches = -(-samples // plan.batch_size)
    more_up, more_down = dict[str, int](), dict[str, int]()
    if plan.method.startswith("sfl"):
        more_up, more_down = ({"ActivationBatch": activations},) * 2
    elif plan.method == "emo":
        size = batches * _noise(plan) if compressed else activations
        more_up = {"ActivationBatch": round(sent * size)}
    done = tuple(
        DeviceWork(device, batches, samples, {"GlobalModel": down, **more_down}, {"Update": up, **more_up})
        for device in node_configs.sampled(plan, number)
    )
    edges = len(plan.edges)
    if plan.method == "sfl-edge":
        halves = (cost.overlay.bytes,) * edges
        return RoundWork(number, done, 0.0, overlays=halves, overlays_down=halves)
    if plan.method != "emo":
        return RoundWork(number, done, 0.0)
    offered = [batches * sum(plan.edge_of(each.device) == edge for each in done) for edge in range(edges)]
    steps = tuple(round(plan.overlay.replay_ratio * each / plan.overlay.batches) for each in offered)
    total = sum(offered)
    return RoundWork(number, done, 0.0, attempted=total, sent=round(sent * total), steps=steps)


def deadline(plan: Plan, scenario: Scenario, samples: int) -> float:
    """Virtual seconds after which a round no longer waits for devices that have dropped out: the scenario's, or twice
    what a round takes in which each has `samples`, where that is longer."""
    whole = round_time(plan, scenario, work(plan, samples * plan.training.epochs), costs.of(plan.model))
    return max(scenario.deadline_s, 2 * whole.seconds)


def total(done: RoundWork) -> int:
    """Bytes of all devices, up and down."""
    return sum(sum(each.up.values()) + sum(each.down.values()) for each in done.devices)


@lru_cache(maxsize=16)
def _models(plan: Plan, model: Form) -> tuple[int, int]:
    """Bytes of the global model and of an update. Other forms than fp32: of weights that one round has moved by noise
    of a hundredth, which leaves a codec less to save than training does."""
    if model == plan.training.update == "fp32":
        size = on_device(plan, costs.of(plan.model)).bytes
        return size, size
    net = split_network.network(plan.model, plan.seed)
    state = split_network.weights(net.trunk)
    if not plan.method.startswith("sfl"):
        rest = split_network.overlay(plan.model, plan.seed) if plan.method == "fl-large" else net.head
        state |= {f"rest.{name}": array for name, array in split_network.weights(rest).items()}
    random = np.random.default_rng(plan.seed)
    moved: Weights = {
        name: array + np.float32(0.01) * random.standard_normal(array.shape, np.float32)
        if array.dtype == np.float32
        else array
        for name, array in state.items()
    }
    return _size(shrink(state, model, state)), _size(shrink(moved, plan.training.update, state))


def _size(weights: Weights) -> int:
    return sum(array.nbytes for array in weights.values())


@lru_cache(maxsize=16)
def _noise(plan: Plan) -> int:
    """Bytes of one batch of rectified noise as the tap's codec sends it the first time, without a version to differ from."""
    shape = (plan.batch_size, *split_network.split_shape(plan.model))
    noise = np.random.default_rng(plan.seed).standard_normal(shape, np.float32)
    return len(Packed(np.maximum(noise, 0), plan.tap.codec).data())
