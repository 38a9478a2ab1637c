"""The replay cache, taken apart: its size, what it gives to training next, and how old that is.

    python -m testbed.experiments.cache --dataset cifar10 --data-dir DIR --width 0.25 --rounds 40 --json FILE

An arm is `SAMPLING@SHARE[:POLICY[+FRESH]]`: how batches are sampled; the budget of the disk as a share of what all
batches take; and when devices send (`always` if left out). Sending less often makes the cache older: `age` is in
rounds, the mean over what is cached. All else is as in intervals.py, whose recordings serve here too (`--work`).
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from emo.config import Cache, Controller, Overlay, Overlays
from testbed.experiments import arm as arms
from testbed.experiments import study
from testbed.experiments.plot import curves
from testbed.figures import mean

ARMS = (
    *(f"mixed@{share}" for share in ("1.0", "0.5", "0.3", "0.1")),
    *(f"{sampling}@1.0" for sampling in ("uniform", "importance", "fresh")),
    *(f"{sampling}@1.0:fixed(4)" for sampling in ("mixed", "fresh")),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = study.parser(__doc__, ARMS, "SAMPLING@SHARE[:POLICY[+FRESH]]")
    parser.add_argument("--codec", default="int2-delta", help="how activations are written")
    parser.add_argument("--replay-ratio", type=float, default=2.0, help="batches replayed per batch offered")
    return study.main("cache", parser.parse_args(argv), _arm, _show)


def _arm(name: str, args: argparse.Namespace) -> arms.Arm:
    text, _, sends = name.partition(":")
    sampling, _, share = text.partition("@")
    policy, _, fresh = (sends or "always").partition("+")
    Cache.model_validate({"sampling": sampling, "memory_share": share or 1})
    Controller.model_validate({"policy": policy})
    rounds = Overlays.model_validate({"fresh_rounds": fresh or 0}).fresh_rounds
    overlay = Overlay(replay_ratio=args.replay_ratio)
    first = round(0.4 * args.devices)
    return arms.Arm(policy, args.codec, first, overlay, fresh_rounds=rounds, sampling=sampling, share=float(share or 1))


def name_of(row: dict[str, object]) -> str:
    sends = "" if row["policy"] == "always" else f":{arms.title(row)}"
    return f"{row['sampling']}@{row['share']:g}{sends}"


def _show(rows: study.Rows, args: argparse.Namespace) -> None:
    columns: dict[str, Callable[[study.Rows], str]] = {
        "batches": lambda mine: f"{mean(mine, 'entries'):.0f}",
        "age": lambda mine: f"{mean(mine, 'mean_age'):.1f}",
        "reduction": lambda mine: f"{mean(mine, 'reduction'):.1f}x",
    }
    study.table(rows, name_of, args.rounds, columns)
    if args.plot:
        curves(rows, name_of, args.plot)


if __name__ == "__main__":
    sys.exit(main())
