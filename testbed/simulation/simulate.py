"""`emo simulate`: makes a plan of the command line's options, runs it and prints the result."""

import argparse
import json
import logging
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emo import config_file
from emo.config import Data
from emo.data import registry
from emo.errors import ConfigError
from testbed import units
from testbed.plan import METHODS, Plan
from testbed.simulation import run as simulate
from testbed.simulation import run_folder
from testbed.timing import scenario

# The networks that fit a dataset, where none is named.
MODELS = {"digits": "cnn", "cifar10": "vgg6", "cifar100": "mobilenet6"}
# Option -> key of the plan.
KEYS = {
    "method": "method",
    "dataset": "data.name",
    "data_dir": "data.dir",
    "model": "model.name",
    "width": "model.width",
    "norm": "model.norm",
    "rounds": "rounds",
    "devices": "devices",
    "per_round": "per_round",
    "samples": "samples",
    "batch_size": "batch_size",
    "epochs": "training.epochs",
    "lr": "training.lr",
    "scheme": "scheme",
    "alpha": "alpha",
    "edges": "edges",
    "codec": "tap.codec",
    "policy": "controller.policy",
    "fresh_rounds": "fresh_rounds",
    "replay_ratio": "overlay.replay_ratio",
    "evaluate_every": "evaluate_every",
    "seed": "seed",
}


def run(args: argparse.Namespace, stop: threading.Event) -> int:
    """The exit status: 0 when the run is over, 130 when it was stopped and --resume can go on. Raises EmoError."""
    _stop_on_interrupt(stop)
    if not args.verbose:
        logging.getLogger("emo").setLevel(logging.WARNING)  # nodes tell of their rounds, and so do we
    out: Path | None = args.out
    if out is None:
        if args.method is None:
            raise ConfigError("which run? --out DIR names its folder; a new one needs --method")
        out = Path("runs") / f"{args.method}-{args.dataset or Data().name}-{args.seed or 0}"
    before = run_folder.Run(out).header if args.resume else None
    plan = plan_of(args, before.plan if before else None)
    where = scenario.load(args.scenario) if args.scenario or not before else before.scenario
    finished = simulate.run(
        plan,
        where,
        out,
        workers=_cores() if args.workers is None else args.workers,
        device=args.device or (before.device if before else "cpu"),
        checkpoint=args.checkpoint,
        resume=args.resume,
        onnx=args.export,
        stop=stop,
        closed=(lambda row: print(row.model_dump_json(), flush=True)) if args.json else (lambda _row: None),
    )
    if finished is None:
        simulate.say(f"stopped; `emo simulate --resume --out {out}` goes on")
        return 130
    assert finished.result is not None
    print(json.dumps({"out": str(out), **finished.result.model_dump()}) if args.json else summary(finished))
    return 0


def plan_of(args: argparse.Namespace, before: Plan | None, environ: Mapping[str, str] = os.environ) -> Plan:
    """The plan that the options name, on top of `before` where a run goes on; `EMO_*` names what has no option, as
    EMO_OVERLAY__LR=0.02. The data is read for the shape of its samples. Raises ConfigError, DataError."""
    values: dict[str, Any] = before.model_dump() if before else {}
    for option, key in KEYS.items():
        value = getattr(args, option)
        if value is not None:
            _set(values, key, value)
    if before is None:
        _complete(values)
    return config_file.parse(Plan, values, "options", environ)


def _complete(values: dict[str, Any]) -> None:
    """What a new run's plan takes from its data."""
    if "method" not in values:
        raise ConfigError(f"which method? Say --method, one of {', '.join(METHODS)}")
    source = values.setdefault("data", {})
    source["seed"] = values.get("seed", 0)
    spec = config_file.parse(Data, source, "options", {})
    model = values.setdefault("model", {})
    if "name" not in model and spec.name not in MODELS:
        raise ConfigError(f"which model for {spec.name}? Say --model, vgg6 or mobilenet6 say")
    training, _ = registry.load(spec)
    model.setdefault("name", MODELS.get(spec.name))
    model["input"], model["classes"] = training.images.shape[1:], len(training.classes)


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[name] = value


def _stop_on_interrupt(stop: threading.Event) -> None:
    """Ctrl-C lets the round end; a second one does not wait for it."""

    def handle(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        simulate.say("stopping when this round is over; Ctrl-C again stops at once")
        threading.Thread(target=stop.set, daemon=True).start()  # as emo.runtime.runner.stop_on says

    signal.signal(signal.SIGINT, handle)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def summary(finished: run_folder.Run) -> str:
    """A run that is over, for people."""
    result, plan = finished.result, finished.header.plan
    assert result is not None
    total, rounds = result.total, result.rounds
    accuracies = ", ".join(f"{name} {value:.2f} %" for name, value in result.accuracies.items())
    lines = [
        f"{plan.method}, {plan.data.name}, {plan.model.name} x {plan.model.width:g}, {rounds} rounds",
        f"accuracy   {accuracies}",
        f"a round    LAN {units.size(total.lan / rounds)}, WAN {units.size(total.wan / rounds)}",
        f"a round    {units.seconds(total.virtual_s / rounds)} in the scenario, {units.seconds(total.real_s / rounds)} here",
    ]
    if total.sent_fraction is not None:
        lines.append(f"sent       {total.sent_fraction:.1%} of the batches")
    return "\n".join([*lines, f"everything is in {finished.out}"])
