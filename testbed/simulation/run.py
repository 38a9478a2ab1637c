"""Runs a plan: checks it, makes the method, runs its rounds with checkpoints, and resumes a run that was stopped."""

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from emo import __version__
from emo.config import Section
from emo.data import registry
from emo.data.dataset import Dataset
from emo.errors import ConfigError
from emo.models import split_network
from testbed import evaluation, node_configs, units
from testbed.fleet.fleet import Fleet
from testbed.plan import Method, Plan
from testbed.simulation import run_folder
from testbed.simulation.run_folder import Device
from testbed.splitfed.splitfed import Split
from testbed.timing.scenario import Scenario

Say = Callable[[str], None]


def say(text: str) -> None:
    """Progress, on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def make(
    plan: Plan,
    scenario: Scenario,
    training: Dataset,
    test: Dataset,
    workers: int,
    device: Device,
    folder: Path,
) -> Method:
    """The method that `plan` names, before its first round. `folder`: empty, for what does not fit in memory.

    Close it. Raises EmoError on what does not fit; `check` says more of it, and sooner.
    """
    if plan.method.startswith("sfl"):
        return Split(plan, scenario, training, test, workers, folder, device)
    return Fleet(plan, scenario, training, test, workers, folder, device)


def check(plan: Plan, scenario: Scenario, training: Dataset, device: Device = "cpu") -> None:
    """Raises, within a second and before anything runs, if the plan cannot be run: DataError where the model does
    not take the data, ModelError where it lacks a part that the method needs, PartitionError where there are fewer
    samples than asked for, ConfigError for the rest."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda: torch sees no GPU here; leave it out, or install torch for CUDA")
    registry.must_fit(training, plan.model)
    split_network.network(plan.model, seed=0)
    if plan.method != "fl-small":
        split_network.overlay(plan.model, seed=0)
    node_configs.shares(plan, training.labels)
    scenario.check(plan)


def run(
    plan: Plan,
    scenario: Scenario,
    out: Path,
    *,
    workers: int = 1,
    device: Device = "cpu",
    checkpoint: int = 10,
    resume: bool = False,
    onnx: Path | None = None,
    stop: threading.Event | None = None,
    say: Say = say,
    closed: Callable[[run_folder.Row], None] = lambda _row: None,
) -> run_folder.Run | None:
    """Run `plan` to its end and return its folder. `resume`: go on with the run in `out`, or start where there is none.

    Between two checkpoints lie `checkpoint` rounds. A run that was stopped and goes on gives the same bits as one that
    was not, with any `workers`. `onnx`: where to export the ensemble to. `closed` gets the row of each round.
    None when `stop` was set: the round that was running is over, a checkpoint is there.
    Raises EmoError on what does not fit, before anything runs; ConfigError where `out` holds another run.
    """
    for name, value in (("workers", workers), ("checkpoint", checkpoint)):
        if value < 1:
            raise ConfigError(f"{name} {value}: must be 1 or more")
    training, test = registry.load(plan.data)
    check(plan, scenario, training, device)
    if onnx is not None:
        evaluation.try_export(plan, test, onnx)
    here = _begin(plan, scenario, out, device, resume)
    if here.result is None:
        for line in here.header.assumptions:
            say(f"assumed: {line}")
        with _method(here, training, test, workers, device) as method:
            if not _rounds(here, method, checkpoint, stop or threading.Event(), say, closed):
                return None
            here.finish(method.weights())
    if onnx is not None:
        error = evaluation.export(plan, here.weights(), test, onnx)
        say(f"exported to {onnx}, {onnx.stat().st_size:,} bytes, off from torch by {error:.1g} at most")
    return here


def _begin(plan: Plan, scenario: Scenario, out: Path, device: Device, resume: bool) -> run_folder.Run:
    if not (resume and (out / "plan.json").exists()):
        header = run_folder.Header(
            version=__version__,
            plan=plan,
            scenario=scenario,
            device=device,
            assumptions=tuple(scenario.assumptions(plan)),
        )
        return run_folder.Run.begin(out, header)
    here = run_folder.Run(out)
    odd = differences(here.header.plan, plan) + differences(here.header.scenario, scenario)
    if device != here.header.device:
        odd.append(f"device is {here.header.device!r} there, not {device!r}")
    if odd:
        raise ConfigError(
            f"{out}: holds another run: {'; '.join(odd[:3])}. --resume goes on with the same; name another folder"
        )
    return here


def differences(before: Section, asked: Section) -> list[str]:
    """The keys in which they differ, with both values. Where the data lies makes no difference."""
    ours, theirs = _flat(asked.model_dump(mode="json")), _flat(before.model_dump(mode="json"))
    return [
        f"{key} is {theirs.get(key)!r} there, not {ours.get(key)!r}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key) and key != "data.dir"
    ]


def _flat(values: object, at: str = "") -> dict[str, object]:
    if not isinstance(values, dict):
        return {at: values}
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{at}.{key}" if at else str(key))
    return flat


@contextlib.contextmanager
def _method(here: run_folder.Run, training: Dataset, test: Dataset, workers: int, device: Device) -> Iterator[Method]:
    """The method as it was after the last round of `here`. Closes it afterwards and removes its folder."""
    work, header = here.out / "work", here.header
    saved = here.back()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        method = make(header.plan, header.scenario, training, test, workers, device, work)
        with contextlib.closing(method):
            if saved is not None:
                method.load(saved)
            yield method
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _rounds(
    here: run_folder.Run,
    method: Method,
    every: int,
    stop: threading.Event,
    say: Say,
    closed: Callable[[run_folder.Row], None],
) -> bool:
    """True when the last round is over; False when `stop` came first, and everything is in a checkpoint."""
    plan = here.header.plan
    for number in range(len(here.rows) + 1, plan.rounds + 1):
        began = time.perf_counter()
        work, took = method.round(number)
        real_s = time.perf_counter() - began
        last = number == plan.rounds
        due = last or number % plan.evaluate_every == 0
        accuracies = method.accuracies() if due else {}
        row = run_folder.row(plan.method, work, took, real_s, accuracies, here.total)
        here.add(row)
        closed(row)
        say(line(row, plan))
        if not last and (stop.is_set() or number % every == 0):
            here.checkpoint(method.save)
        if not last and stop.is_set():
            return False
    return True


def line(row: run_folder.Row, plan: Plan) -> str:
    """A round, for people."""
    parts = [f"{plan.method} round {row.round}/{plan.rounds}:"]
    parts.append("loss not finite," if row.loss is None else f"loss {row.loss:.3f},")
    if "model" in row.accuracies:
        parts.append(f"accuracy {row.accuracies['model']:.2f} %,")
    if row.lan.total:
        parts.append(f"LAN {units.size(row.lan.total)},")
    parts.append(f"WAN {units.size(row.wan.total)},")
    if row.sent_fraction is not None:
        parts.append(f"{row.sent_fraction:.0%} of batches sent,")
    if row.arrived < row.devices:
        parts.append(f"{row.devices - row.arrived} of {row.devices} devices lost,")
    parts.append(f"{units.seconds(row.virtual_s)} there, {units.seconds(row.real_s)} here")
    return " ".join(parts)
