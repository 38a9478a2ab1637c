"""The replay cache, taken apart: its size, what it gives to training next, and how old that is.

    python -m testbed.experiments.cache --dataset cifar10 --data-dir DIR --width 0.25 --rounds 40 --json FILE

An arm is `SAMPLING@SHARE[:POLICY[+FRESH]]`: how batches are sampled; the budget of the disk as a share of what all
batches take; and when devices send (`always` if left out). Sending less often makes the cache older: `age` is in
rounds, the mean over what is cached. All else is as in intervals.py, whose recordings serve here too (`--work`).
"""

import argparse
import statistics
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from emo.config import Cache, Controller, Overlay, Overlays
from emo.errors import ConfigError
from testbed.experiments import arm as arms
from testbed.experiments import study
from testbed.experiments.plot import curves

ARMS = (
    *(f"mixed@{share}" for share in ("1.0", "0.5", "0.3", "0.1")),
    *(f"{sampling}@1.0" for sampling in ("uniform", "importance", "fresh")),
    *(f"{sampling}@1.0:fixed(4)" for sampling in ("mixed", "fresh")),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = study.parser(__doc__.splitlines()[0], ARMS, "SAMPLING@SHARE[:POLICY[+FRESH]]")
    parser.add_argument("--codec", default="int2-delta", help="how activations are written")
    parser.add_argument("--replay-ratio", type=float, default=2.0, help="batches replayed per batch offered")
    return study.main("cache", parser.parse_args(argv), _arm, _show)


def _arm(name: str, args: argparse.Namespace) -> arms.Arm:
    text, _, sends = name.partition(":")
    sampling, _, share = text.partition("@")
    policy, _, fresh = (sends or "always").partition("+")
    try:
        Cache.model_validate({"sampling": sampling, "memory_share": share or 1})
        Controller.model_validate({"policy": policy})
        rounds = Overlays.model_validate({"fresh_rounds": fresh or 0}).fresh_rounds
    except ValidationError as error:
        raise ConfigError(f"--arms {name}: {error.errors()[0]['msg']}") from error
    overlay = Overlay(replay_ratio=args.replay_ratio)
    first = round(0.4 * args.devices)
    return arms.Arm(
        policy, args.codec, first, overlay, fresh_rounds=rounds, sampling=sampling, share=float(share or 1)
    )


def name_of(row: dict[str, object]) -> str:
    sends = "" if row["policy"] == "always" else f":{arms.title(row)}"
    return f"{row['sampling']}@{row['share']:g}{sends}"


def _show(rows: study.Rows, args: argparse.Namespace) -> None:
    print(f"{'arm':28} {'seeds':>5} {'batches':>8} {'age':>6} {'reduction':>9} {'bagged %':>15} {'FL %':>6}")
    last = [row for row in rows if row["round"] == args.rounds]
    for name in dict.fromkeys(map(name_of, last)):
        mine = [row for row in last if name_of(row) == name]

        def mean(key: str, mine: study.Rows = mine) -> float:
            return statistics.fmean(row[key] for row in mine)

        spread = statistics.stdev([row["accuracy_bagged"] for row in mine]) if len(mine) > 1 else 0.0
        print(
            f"{name:28} {len(mine):5} {mean('entries'):8.0f} {mean('mean_age'):6.1f} {mean('reduction'):8.1f}x "
            f"{mean('accuracy_bagged'):8.2f} ± {spread:4.2f} {mean('accuracy_fl'):6.2f}"
        )
    if args.plot:
        curves(rows, name_of, args.plot)


if __name__ == "__main__":
    sys.exit(main())
