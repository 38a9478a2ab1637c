"""What hostile devices do to federated learning, under each rule of aggregation: accuracy, rule x attack.

    python -m testbed.experiments.hostile --json FILE
    python -m testbed.experiments.hostile --dataset cifar10 --data-dir DIR --model vgg6 --width 0.25

The fleet's own cloud and devices, in one process; hostile ones train as the others do, then send something else:

    sign-flip      the model less what they have learnt; x10: ten times that
    noise          normal noise, two hundred times as long as what they have learnt
    label-flip     what they have learnt from labels turned round: the last class for the first, ...
    claims         the same, said to be of 16 million samples, as their status says, too
    little         mean less z standard deviations of what they have learnt, all the same; z so small that it passes
                   for honest: "A Little Is Enough" (Baruch et al. 2019, arXiv 1902.06156)
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cloud_app.aggregation import clipping
from cloud_app.rounds.node import CloudNode
from cloud_app.rounds.state import begin
from device_app.node import DeviceNode
from emo.config import CloudConfig, Data, DeviceConfig, Model
from emo.data import partition, registry
from emo.data.batches import FixedBatches
from emo.data.dataset import Dataset
from emo.journal import Journal
from emo.local_sgd import evaluate
from emo.models import split_network
from emo.models.state import layout
from emo.wire.messages import GlobalModel, Status, Update, Weights
from testbed import figures

RULES: dict[str, dict[str, object]] = {
    "mean": {},
    "mean, clip_norm: median": {"clip_norm": "median"},
    "median": {"aggregate": "median"},
    "trimmed-mean": {"aggregate": "trimmed-mean"},
    "multi-krum": {"aggregate": "multi-krum"},
    "mean, max_weight: null": {"max_weight": None},
}
# What hostile devices send in place of `learnt`, one update each: weights less those the round started from.
Attack = Callable[[np.random.Generator, list[Weights]], list[Weights]]


def _times(factor: float) -> Attack:
    return lambda _rng, learnt: [{n: factor * a for n, a in each.items()} for each in learnt]


def _noise(rng: np.random.Generator, learnt: list[Weights]) -> list[Weights]:
    sent: list[Weights] = []
    for each in learnt:
        noise = {name: rng.standard_normal(array.shape) for name, array in each.items()}
        share = _LOUD * clipping.norm(each) / clipping.norm(noise)
        sent.append({name: share * array for name, array in noise.items()})
    return sent


def _little(_rng: np.random.Generator, learnt: list[Weights]) -> list[Weights]:
    one = {}
    for name in learnt[0]:
        stacked = np.stack([each[name] for each in learnt])
        one[name] = stacked.mean(axis=0) - _Z * stacked.std(axis=0)
    return [one] * len(learnt)


# Baruch et al., algorithm 3, for 4 of 20: s = 20 / 2 + 1 - 4 = 7 honest ones are to be farther off than the attackers,
# so z is where the normal distribution has (16 - 7) / 16 below it.
_Z = statistics.NormalDist().inv_cdf(9 / 16)
ATTACKS: dict[str, Attack | None] = {
    "none": None,
    "sign-flip": _times(-1.0),
    "sign-flip x10": _times(-10.0),
    "noise": _noise,
    "label-flip": _times(1.0),
    "little": _little,
    "claims": _times(1.0),
}
_TURNED = {"label-flip", "claims"}
_CLAIM = 2**24 - 1  # samples
_DEADLINE_S = 300.0
_LOUD = 200  # noise, in lengths of what was learnt


@dataclasses.dataclass(frozen=True)
class Setting:
    """`hostile` of `devices` attack; all are asked in every round. `sizes`: as much data for each device, or `zipf`: for the
    second half as much as for the first, for the third a third, ..."""

    data: Data
    model: Model
    devices: int = 20
    hostile: int = 4
    rounds: int = 6
    lr: float = 0.1
    scheme: str = "iid"
    alpha: float = 5.0
    seed: int = 0
    sizes: str = "equal"


def accuracy(setting: Setting, rule: Mapping[str, object], attack: str, train: Dataset, test: Dataset) -> float:
    """Share of right answers of the global model after the last round. Raises EmoError."""
    names = [f"device-{number:03d}" for number in range(setting.devices)]
    # Spread over the devices, whose shares of the data differ in order.
    rng = np.random.default_rng([setting.seed, setting.hostile])
    hostile = (
        {names[n] for n in rng.choice(setting.devices, setting.hostile, replace=False)} if attack != "none" else set()
    )
    net = split_network.network(setting.model, setting.seed)
    cloud_config = _cloud(setting, rule)
    state = begin(cloud_config, "run", split_network.weights(net))
    cloud = CloudNode(cloud_config, state, Journal(), layout=layout(net, setting.model.input))
    devices = {}
    rows = _zipf(setting, train) if setting.sizes == "zipf" else None
    for number, name in enumerate(names):
        turned = attack in _TURNED and name in hostile
        mine = dataclasses.replace(train, labels=len(train.classes) - 1 - train.labels) if turned else train
        config = _device(setting, name, number)
        batches = None if rows is None else FixedBatches(mine, rows[number], config.batch_size, config.data.seed)
        devices[name] = DeviceNode(config, mine, Journal(), net, batches)
    lies: dict[str, Any] = {"samples": _CLAIM} if attack == "claims" else {}
    said = [
        dataclasses.replace(device.hello(online=True), **(lies if name in hostile else {}))
        for name, device in devices.items()
    ]
    (asked,), now = _models(cloud, said, 0.0), 0.0
    while asked.devices:
        updates = {name: _update(devices[name], asked) for name in asked.devices}
        _turn(ATTACKS[attack], rng, asked.weights, updates, sorted(hostile & updates.keys()), lies)
        opened = _models(cloud, list(updates.values()), now)
        while not opened:  # some were refused: it waits for them
            now += _DEADLINE_S
            opened = [m for m in cloud.tick(now) if isinstance(m, GlobalModel)]
        (asked,) = opened
    split_network.load(net, state.weights)
    return evaluate(net, test)[0]


def _models(cloud: CloudNode, sent: Sequence[Status | Update], now: float) -> list[GlobalModel]:
    return [m for message in sent for m in cloud.handle(message, now) if isinstance(m, GlobalModel)]


def _update(device: DeviceNode, model: GlobalModel) -> Update:
    (update,) = (m for m in device.handle(model, 0.0) if isinstance(m, Update))
    return update


def _turn(
    attack: Attack | None,
    rng: np.random.Generator,
    start: Weights,
    updates: dict[str, Update],
    hostile: list[str],
    lies: Mapping[str, Any],
) -> None:
    """In `updates`, what the hostile ones send instead. `lies`: fields beside the weights."""
    if attack is None:
        return
    learnt: list[Weights] = [
        {n: a.astype(np.float64) - start[n] for n, a in updates[name].weights.items()} for name in hostile
    ]
    for name, change in zip(hostile, attack(rng, learnt), strict=True):
        weights = {n: (a + change[n]).astype(a.dtype) for n, a in start.items()}
        updates[name] = dataclasses.replace(updates[name], weights=weights, **lies)


def _cloud(setting: Setting, rule: Mapping[str, object]) -> CloudConfig:
    share = setting.hostile / setting.devices
    rounds = {
        "rounds": setting.rounds,
        "min_devices": setting.devices,
        "seed": setting.seed,
        "quorum": 1 - share,
        "deadline_s": _DEADLINE_S,
        "give_up_s": 3 * _DEADLINE_S,
        "attackers": share,
    }
    training = {"lr": setting.lr}
    return CloudConfig.model_validate({"model": setting.model, "rounds": rounds | dict(rule), "training": training})


def _zipf(setting: Setting, train: Dataset) -> list[NDArray[np.int64]]:
    """Rows of each device: of small equal parts, which are dealt out by the scheme, the first gets as many as there are
    devices."""
    counts = [-(-setting.devices // place) for place in range(1, setting.devices + 1)]
    deal = partition.iid if setting.scheme == "iid" else partial(partition.dirichlet, alpha=setting.alpha)
    parts = iter(deal(train.labels, sum(counts), seed=setting.seed))
    return [np.sort(np.concatenate([next(parts) for _ in range(count)])) for count in counts]


def _device(setting: Setting, name: str, number: int) -> DeviceConfig:
    share = {"scheme": setting.scheme, "devices": setting.devices, "index": number, "alpha": setting.alpha}
    return DeviceConfig.model_validate(
        {
            "id": name,
            "model": setting.model,
            "data": setting.data,
            "partition": share | {"seed": setting.seed},
        }
    )


@figures.command("hostile")
def main(argv: Sequence[str] | None = None) -> int:
    parser = figures.parser(
        __doc__,
        dataset="digits",
        data_dir=None,
        model="cnn",
        width=1.0,
        devices=20,
        rounds=6,
        lr=0.1,
        alpha=5.0,
        seeds=[0],
    )
    option, schemes = parser.add_argument, ["iid", "dirichlet"]
    option("--hostile", type=int, default=4, help="how many of the devices")
    option("--schemes", nargs="+", choices=schemes, default=schemes, help="how samples are dealt out")
    option("--sizes", choices=["equal", "zipf"], default="equal", help="of the devices' shares of the data")
    option("--rules", nargs="+", choices=RULES, default=list(RULES), help="how updates are aggregated")
    option("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS), help="what hostile devices send")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    figures.write(args.json, [row for scheme in args.schemes for row in _rows(args, scheme)])
    return 0


def _rows(args: argparse.Namespace, scheme: str) -> list[dict[str, Any]]:
    """A row a rule, printed as soon as it is known: attack -> percent, one a seed."""
    spec = Data(name=args.dataset, dir=args.data_dir)
    train, test = registry.load(spec)
    model = Model(name=args.model, width=args.width, input=train.images.shape[1:], classes=len(train.classes))
    said = scheme if scheme == "iid" else f"{scheme}, alpha {args.alpha:g}"
    print(f"\n{args.dataset}, {said}: {args.hostile} of {args.devices} devices are hostile, {args.rounds} rounds\n")
    figures.heads("rule", *args.attacks, "seconds a run")
    rows = []
    for rule in args.rules:
        began, shares = time.perf_counter(), dict[str, list[float]]()
        for attack in args.attacks:
            for seed in args.seeds:
                names = ("devices", "hostile", "rounds", "lr", "alpha", "sizes")
                asked = {name: getattr(args, name) for name in names}
                setting = Setting(spec, model, scheme=scheme, seed=seed, **asked)
                share = accuracy(setting, RULES[rule], attack, train, test)
                shares.setdefault(attack, []).append(round(100 * share, 2))
        seconds = (time.perf_counter() - began) / (len(args.attacks) * len(args.seeds))
        rows.append({"scheme": scheme, "rule": rule, "accuracy": shares, "seconds": round(seconds, 2)})
        means = [f"{statistics.fmean(each):.1f}" for each in shares.values()]
        figures.markdown(rule, *means, f"{seconds:.1f}")
    return rows


if __name__ == "__main__":
    sys.exit(main())
