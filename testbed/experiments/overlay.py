"""How an overlay should train: how much, and on what made of the activations.

    python -m testbed.experiments.overlay --dataset cifar10 --data-dir DIR --width 0.25 --rounds 30 --json FILE

An arm is settings of `overlay` that differ from the defaults, e.g. `replay_ratio=2,flip=true`; `-` is the defaults.
Devices send always, 2 bits a value. All else is as in intervals.py, whose recordings serve here too (`--work`).
"""

import argparse
import statistics
import sys
from collections.abc import Sequence

from emo import bounded_yaml
from emo.config import Overlay
from testbed.experiments import arm as arms
from testbed.experiments import study
from testbed.experiments.plot import curves

ARMS = (*(f"replay_ratio={ratio}" for ratio in (1, 2, 4, 8)), "flip=true", "mixup=0.2")


def main(argv: Sequence[str] | None = None) -> int:
    parser = study.parser(__doc__, ARMS, "KEY=VALUE[,KEY=VALUE]")
    return study.main("overlay", parser.parse_args(argv), _arm, _show)


def _arm(name: str, args: argparse.Namespace) -> arms.Arm:
    pairs = [each.partition("=") for each in name.split(",")] if name != "-" else []
    overlay = Overlay.model_validate({key: bounded_yaml.parse(value, f"--arms {name}") for key, _, value in pairs})
    return arms.Arm("always", "int2-delta", round(0.4 * args.devices), overlay)


def _name(row: dict[str, object]) -> str:
    overlay = row["overlay"]
    assert isinstance(overlay, dict)
    return ",".join(f"{key}={value}" for key, value in overlay.items()) or "-"


def _each(mine: study.Rows) -> str:
    """Accuracy of each edge's overlay."""
    overlays = zip(*(row["accuracy_overlays"] for row in mine), strict=True)
    return ", ".join(f"{statistics.fmean(values):.2f}" for values in overlays)


def _show(rows: study.Rows, args: argparse.Namespace) -> None:
    study.table(rows, _name, args.rounds, {"overlays %": _each})
    if args.plot:
        curves(rows, _name, args.plot)


if __name__ == "__main__":
    sys.exit(main())
