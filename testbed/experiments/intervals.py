"""How few bytes carry the overlays: accuracy against traffic, for policies of the controller and codecs.

    python -m testbed.experiments.intervals --dataset cifar10 --data-dir DIR --width 0.25 --rounds 60 --json FILE

Each seed's federated run is recorded once (it is the same with any policy), then every arm `POLICY[@CAP][+FRESH]:CODEC`
(cap of an interval in attempts; last rounds that send everything) replays it through the nodes and frames of a fleet.
`--work DIR` keeps recordings and rows for the next call. `reduction` counts what split federated learning would send
for the same batches (activations up and gradients down, raw float32 without framing) over everything that the LAN
carried here: frames and topics of activations, intervals and reports.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import cast

from emo.config import CODECS, Codec, Controller, Overlay, Overlays
from emo.errors import ConfigError
from testbed.experiments import arm as arms
from testbed.experiments import study
from testbed.experiments.plot import frontier
from testbed.figures import mean

ARMS = ("always:fp32", "svcca:int4-delta", "fixed(3):int3-delta", "fixed(1):int2-delta")


def main(argv: Sequence[str] | None = None) -> int:
    parser = study.parser(__doc__, ARMS, "POLICY[@CAP][+FRESH]:CODEC")
    parser.add_argument("--replay-ratio", type=float, default=2.0, help="batches replayed per batch offered")
    return study.main("intervals", parser.parse_args(argv), _arm, _show)


def _arm(name: str, args: argparse.Namespace) -> arms.Arm:
    text, _, codec = name.rpartition(":")
    text, _, fresh = text.partition("+")
    policy, _, cap = text.partition("@")
    if codec not in CODECS:
        raise ConfigError(f"--arms {name}: the codec must be one of {', '.join(CODECS)}")
    limit = Controller.model_validate({"policy": policy, "max_interval": cap or 4.0}).max_interval
    rounds = Overlays.model_validate({"fresh_rounds": fresh or 0}).fresh_rounds
    overlay = Overlay(replay_ratio=args.replay_ratio)
    return arms.Arm(policy, cast("Codec", codec), round(0.4 * args.devices), overlay, limit, rounds)


def _show(rows: study.Rows, args: argparse.Namespace) -> None:
    study.table(
        rows,
        lambda row: f"{arms.title(row)}:{row['codec']}",
        args.rounds,
        {
            "sent %": lambda mine: f"{100 * mean(mine, 'sent_fraction'):.1f}",
            "reduction": lambda mine: f"{mean(mine, 'reduction'):.1f}x",
        },
    )
    if args.plot:
        frontier([row for row in rows if row["round"] == args.rounds], args.plot)


if __name__ == "__main__":
    sys.exit(main())
