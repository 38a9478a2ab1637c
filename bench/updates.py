"""What smaller updates and global models save and cost: federated learning on digits in every form.

    python -m bench.updates [--json FILE] [--rounds 12 --devices 10 --seeds 0 1 2]

The nodes that a fleet runs, in one process; every message is packed and read back. Means over rounds and seeds:
`up` and `down`, bytes of one update and of one global model; `error`, how far the rounding of a round's updates and
of its result takes that off, over what the round has moved (L2; the rounds are those of the fp32 run). After the last
round: `accuracy`, and `apart`, how far the model is from that of the fp32 run, over what that run has moved.
"""

import math
import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar, get_args

import numpy as np
import torch

from cloud_app.aggregation import exact_mean
from cloud_app.rounds.node import CloudNode
from cloud_app.rounds.state import begin
from device_app.node import DeviceNode
from emo.config import CloudConfig, Data, DeviceConfig, Form, Model, Training, Whole
from emo.data import registry
from emo.data.batches import Batch
from emo.journal import Journal
from emo.local_sgd import evaluate, train
from emo.models import split_network
from emo.wire import frame
from emo.wire.compression import Weights, restore, shrink
from emo.wire.messages import GlobalModel, Message, Update
from testbed import figures

MODEL = Model(name="cnn", input=(1, 8, 8))
VGG6 = Model(name="vgg6", width=0.25, input=(3, 32, 32))
FORMS: tuple[Form, ...] = get_args(Form)
WHOLE: tuple[Whole, ...] = get_args(Whole)
M = TypeVar("M", GlobalModel, Update)


class Run(NamedTuple):
    """`updates[r]` start from `models[r]` and give `models[r + 1]`."""

    up: float
    down: float
    accuracy: float
    models: list[Weights]
    updates: list[list[Update]]


def main() -> None:
    parser = figures.parser(__doc__, rounds=12, devices=10, seeds=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    exact = [_run("fp32", "fp32", args.rounds, args.devices, seed) for seed in args.seeds]
    cases = []
    for whole in WHOLE:
        for form in FORMS:
            runs = [_run(form, whole, args.rounds, args.devices, seed) for seed in args.seeds]
            cases.append(_case(form, whole, runs, exact))
            figures.line(cases[-1])
    sizes = _sizes(VGG6)
    figures.line({"an update of vgg6 x 0.25, bytes:": "", **sizes})
    figures.write(args.json, {"cases": cases, "vgg6_bytes": sizes})


def _case(form: Form, whole: Whole, runs: list[Run], exact: list[Run]) -> dict[str, Any]:
    error = statistics.fmean(_error(form, whole, run) for run in exact)
    apart = statistics.fmean(
        _distance(run.models[-1], true.models[-1]) / _distance(true.models[-1], true.models[0])
        for run, true in zip(runs, exact, strict=True)
    )
    return {
        "update": form,
        "model": whole,
        "up": round(statistics.fmean(run.up for run in runs)),
        "down": round(statistics.fmean(run.down for run in runs)),
        "accuracy": round(statistics.fmean(run.accuracy for run in runs), 4),
        "accuracies": [round(run.accuracy, 4) for run in runs],
        "error": float(f"{error:.2g}"),
        "apart": float(f"{apart:.2g}"),
    }


def _run(form: Form, whole: Whole, rounds: int, devices: int, seed: int) -> Run:
    train_set, test_set = registry.load(Data())
    settings = {
        "model": MODEL,
        "rounds": {"rounds": rounds, "min_devices": devices, "model": whole},
        "training": {"lr": 0.05, "update": form},
    }
    net = split_network.network(MODEL, seed)
    config = CloudConfig.model_validate(settings)
    state = begin(config, "run", split_network.weights(net))
    cloud = CloudNode(config, state, Journal())
    nodes = []
    for index in range(devices):
        share = {"devices": devices, "index": index, "seed": seed}
        device = {"id": f"device-{index}", "model": MODEL, "partition": share}
        nodes.append(DeviceNode(DeviceConfig.model_validate(device), train_set, Journal()))
    up, down, starts, updates = list[int](), list[int](), [state.weights], list[list[Update]]()
    opened = _opened(cloud, [node.hello(online=True) for node in nodes])
    while opened.devices:
        received = _through(opened, down)
        answers = [message for node in nodes for message in node.handle(received, 0)]
        updates.append([_through(message, up) for message in answers if isinstance(message, Update)])
        opened = _opened(cloud, updates[-1])
        starts.append(state.weights)
    split_network.load(net, state.weights)
    accuracy, _ = evaluate(net, test_set)
    return Run(statistics.fmean(up), statistics.fmean(down), accuracy, starts, updates)


def _opened(cloud: CloudNode, messages: Iterable[Message]) -> GlobalModel:
    """The model that the cloud publishes when the last of `messages` is in."""
    sent = [answer for message in messages for answer in cloud.handle(message, 0)]
    (model,) = [message for message in sent if isinstance(message, GlobalModel)]
    return model


def _through(message: M, sizes: list[int]) -> M:
    payload = frame.pack(message)
    sizes.append(len(payload))
    back = frame.unpack(frame.KINDS.index(type(message)), payload)
    assert isinstance(back, type(message))
    return back


def _error(form: Form, whole: Whole, exact: Run) -> float:
    errors = []
    for base, updates, end in zip(exact.models, exact.updates, exact.models[1:], strict=False):
        total = exact_mean.init(base)
        for update in updates:
            rounded = restore(shrink(update.weights, form, base), form, base)
            total.add(rounded, update.samples)
        mean = total.result()
        off = restore(shrink(mean, whole, mean), whole, mean)
        errors.append(_distance(off, end) / _distance(end, base))
    return statistics.fmean(errors)


def _distance(one: Weights, two: Weights) -> float:
    return math.sqrt(sum(float(np.square(one[name] - two[name], dtype=np.float64).sum()) for name in two))


def _sizes(spec: Model) -> dict[str, int]:
    """Bytes of an update in each form, after 16 steps on noise."""
    net = split_network.network(spec, 0)
    base = split_network.weights(net)
    drawn = torch.Generator().manual_seed(0)
    batches = (
        Batch(
            j,
            torch.randn(16, *spec.input, generator=drawn),
            torch.randint(spec.classes, (16,), generator=drawn),
        )
        for j in range(16)
    )
    list(train(net, batches, Training()))
    weights = split_network.weights(net)
    return {
        form: len(frame.pack(Update("run", "device-0", 1, 256, 1.0, shrink(weights, form, base), form)))
        for form in FORMS
    }


if __name__ == "__main__":
    main()
