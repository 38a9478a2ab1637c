"""The paper's setting (arXiv 2504.00726, section V-A): its models, data sets, devices; and rounds of it, measured."""

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from emo.config import Data, Model, Overlay
from emo.data import registry
from testbed import figures
from testbed.plan import MethodName, Plan, RoundWork
from testbed.simulation import run
from testbed.timing.scenario import Scenario

DATASETS = ("cifar10", "cifar100")
SAMPLES = 500  # of a device: 50,000 images dealt out to 100
Scale = Literal["small", "paper"]
# A batch is offered once in five rounds of the paper's 200: as often as here in a fifth of them, with all devices.
_SMALL_DEVICES, _SMALL_ROUNDS = 2, 10
_MODELS = {"cifar10": ("vgg6", 10), "cifar100": ("mobilenet6", 100)}


def plan(dataset: str, method: MethodName, folder: Path | None = None, seed: int = 0) -> Plan:
    """100 devices, 20 a round, two edges with 40 and 60 %; batch norm, which the bytes of table III prove for
    MobileNet (the paper names none for VGG, nor the widths of its hidden linear layers: 512 here)."""
    name, classes = _MODELS[dataset]
    return Plan(
        method=method,
        data=Data(name=dataset, dir=folder),
        model=Model(name=name, norm="batch", input=(3, 32, 32), classes=classes),
        samples=SAMPLES,
        rounds=200,
        seed=seed,
    )


def parser(description: str, epilog: str) -> argparse.ArgumentParser:
    parser = figures.parser(description, epilog, data_dir=None, workers=1)
    option = parser.add_argument
    option("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS), help="on which")
    scales = "small: 2 full-size devices run and count for 20; paper: 20 of 100"
    option("--scale", choices=["small", "paper"], default="small", help=scales)
    option("--rounds", type=int, help=f"of EMO that are run (default: {_SMALL_ROUNDS}; paper: 200)")
    option("--seed", type=int, default=0, help="of data, weights and sampling")
    return parser


def measure(wanted: Plan, scenario: Scenario, scale: Scale, workers: int, rounds: int | None) -> Sequence[RoundWork]:
    """The counted work of rounds of `wanted`: one, or `rounds` of EMO, whose policy sends less with time. Overlays
    hardly train: no byte of a round depends on them. Raises EmoError, DataError where the data set is not there."""
    many = wanted.method == "emo"
    count = (rounds or (_SMALL_ROUNDS if scale == "small" else wanted.rounds)) if many else 1
    change: dict[str, object] = {"rounds": count, "overlay": Overlay(replay_ratio=0.01)}
    if scale == "small":
        change |= {"devices": _SMALL_DEVICES, "per_round": _SMALL_DEVICES}
    here = wanted.model_copy(update=change)
    training, test = registry.load(here.data)
    run.check(here, scenario, training)
    torch.set_num_threads(1)
    works = []
    with (
        tempfile.TemporaryDirectory(prefix="emo-paper-") as folder,
        closing(run.make(here, scenario, training, test, workers, "cpu", Path(folder))) as method,
    ):
        for number in range(1, count + 1):
            run.say(f"{here.data.name} {here.method}: round {number} of {count}")
            works.append(method.round(number)[0])
    return works


def spread(wanted: Plan, measured: RoundWork, like: RoundWork) -> RoundWork:
    """`measured`, of fewer devices, as if the devices of `like` had done it: each takes the place of one, in turn."""
    times = len(like.devices) / len(measured.devices)
    devices = tuple(
        replace(measured.devices[place % len(measured.devices)], device=each.device)
        for place, each in enumerate(like.devices)
    )
    steps = like.steps if wanted.method == "emo" else measured.steps
    return replace(
        measured,
        devices=devices,
        steps=steps,
        attempted=round(times * measured.attempted),
        sent=round(times * measured.sent),
    )
