"""How few bytes carry the overlays: accuracy against traffic, for policies of the controller and codecs.

    python -m testbed.experiments.intervals --dataset cifar10 --data-dir DIR --width 0.25 --rounds 60 --json FILE

Each seed's federated run is recorded once (it is the same with any policy), then every arm `POLICY[@CAP][+FRESH]:CODEC`
(cap of an interval in attempts; last rounds that send everything) replays it through the nodes and frames of a fleet.
`--work DIR` keeps recordings and rows for the next call. `reduction` counts what split federated learning would send
for the same batches (activations up and gradients down, raw float32 without framing) over everything that the LAN
carried here: frames and topics of activations, intervals and reports.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import cast

from pydantic import ValidationError

from emo.config import CODECS, Codec, Controller, Overlay, Overlays
from emo.errors import ConfigError
from testbed.experiments import arm as arms
from testbed.experiments import study
from testbed.experiments.plot import frontier

ARMS = ("always:fp32", "svcca:int4-delta", "fixed(3):int3-delta", "fixed(1):int2-delta")


def main(argv: Sequence[str] | None = None) -> int:
    parser = study.parser(__doc__.splitlines()[0], ARMS, "POLICY[@CAP][+FRESH]:CODEC")
    parser.add_argument("--replay-ratio", type=float, default=2.0, help="batches replayed per batch offered")
    return study.main("intervals", parser.parse_args(argv), _arm, _show)


def _arm(name: str, args: argparse.Namespace) -> arms.Arm:
    text, _, codec = name.rpartition(":")
    text, _, fresh = text.partition("+")
    policy, _, cap = text.partition("@")
    if codec not in CODECS:
        raise ConfigError(f"--arms {name}: the codec must be one of {', '.join(CODECS)}")
    overlay = Overlay(replay_ratio=args.replay_ratio)
    try:
        limit = Controller.model_validate({"policy": policy, "max_interval": cap or 4.0}).max_interval
        rounds = Overlays.model_validate({"fresh_rounds": fresh or 0}).fresh_rounds
    except ValidationError as error:
        raise ConfigError(f"--arms {name}: {error.errors()[0]['msg']}") from error
    return arms.Arm(policy, cast("Codec", codec), round(0.4 * args.devices), overlay, limit, rounds)


def _show(rows: study.Rows, args: argparse.Namespace) -> None:
    rows = [row for row in rows if row["round"] == args.rounds]
    print(
        f"{'policy':12} {'codec':12} {'seeds':>5} {'sent %':>7} {'reduction':>9} {'bagged %':>15} {'FL %':>6}"
    )
    for policy, codec in dict.fromkeys((arms.title(row), row["codec"]) for row in rows):
        mine = [row for row in rows if (arms.title(row), row["codec"]) == (policy, codec)]

        def mean(key: str, mine: study.Rows = mine) -> float:
            return statistics.fmean(row[key] for row in mine)

        spread = statistics.stdev([row["accuracy_bagged"] for row in mine]) if len(mine) > 1 else 0.0
        print(
            f"{policy:12} {codec:12} {len(mine):5} {100 * mean('sent_fraction'):7.1f} {mean('reduction'):8.1f}x "
            f"{mean('accuracy_bagged'):8.2f} ± {spread:4.2f} {mean('accuracy_fl'):6.2f}"
        )
    if args.plot:
        frontier(rows, args.plot)


if __name__ == "__main__":
    sys.exit(main())
