"""How an overlay should train: how much, and on what made of the activations.

    python -m testbed.experiments.overlay --dataset cifar10 --data-dir DIR --width 0.25 --rounds 30 --json FILE

An arm is settings of `overlay` that differ from the defaults, e.g. `replay_ratio=2,flip=true`; `-` is the defaults.
Devices send always, 2 bits a value. All else is as in intervals.py, whose recordings serve here too (`--work`).
"""

import argparse
import statistics
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from emo import bounded_yaml
from emo.config import Overlay
from emo.errors import ConfigError
from testbed.experiments import arm as arms
from testbed.experiments import study
from testbed.experiments.plot import curves

ARMS = (*(f"replay_ratio={ratio}" for ratio in (1, 2, 4, 8)), "flip=true", "mixup=0.2")


def main(argv: Sequence[str] | None = None) -> int:
    parser = study.parser(__doc__.splitlines()[0], ARMS, "KEY=VALUE[,KEY=VALUE]")
    return study.main("overlay", parser.parse_args(argv), _arm, _show)


def _arm(name: str, args: argparse.Namespace) -> arms.Arm:
    pairs = [each.partition("=") for each in name.split(",")] if name != "-" else []
    try:
        overlay = Overlay.model_validate(
            {key: bounded_yaml.parse(value, f"--arms {name}") for key, _, value in pairs}
        )
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ConfigError(f"--arms {name}: {wrong['loc'][0]}: {wrong['msg']}") from error
    return arms.Arm("always", "int2-delta", round(0.4 * args.devices), overlay)


def _name(row: dict[str, object]) -> str:
    overlay = row["overlay"]
    assert isinstance(overlay, dict)
    return ",".join(f"{key}={value}" for key, value in overlay.items()) or "-"


def _show(rows: study.Rows, args: argparse.Namespace) -> None:
    print(f"{'arm':28} {'seeds':>5} {'bagged %':>15} {'overlays %':>15} {'FL %':>6}")
    last = [row for row in rows if row["round"] == args.rounds]
    for name in dict.fromkeys(map(_name, last)):
        mine = [row for row in last if _name(row) == name]
        bagged = [row["accuracy_bagged"] for row in mine]
        spread = statistics.stdev(bagged) if len(mine) > 1 else 0.0
        each = [
            statistics.fmean(values)
            for values in zip(*(row["accuracy_overlays"] for row in mine), strict=True)
        ]
        federated = statistics.fmean(row["accuracy_fl"] for row in mine)
        print(
            f"{name:28} {len(mine):5} {statistics.fmean(bagged):8.2f} ± {spread:4.2f} "
            f"{', '.join(f'{value:.2f}' for value in each):>15} {federated:6.2f}"
        )
    if args.plot:
        curves(rows, _name, args.plot)


if __name__ == "__main__":
    sys.exit(main())
