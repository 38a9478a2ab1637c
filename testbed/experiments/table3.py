"""Table III of the paper: GiB that a round of 20 devices moves (the paper's GB are GiB).

    python -m testbed.experiments.table3 --analytic
    python -m testbed.experiments.table3 --data-dir DIR --json FILE

`raw` follows from the models: fp32, no framing. `measured` counts frames and topics of rounds that are run, EMO's
activations in its default codec. EMO's raw column is what its share of sent batches would take in fp32; `--analytic`,
which runs nothing, takes every batch as sent. Beside it stands the share that the paper's figure, less FL-Small's, comes
to: for CIFAR-10 more than all, so that there it counts something else too.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from emo.errors import ConfigError
from testbed import figures
from testbed.experiments import paper
from testbed.plan import MethodName, RoundWork
from testbed.timing import estimate, scenario

PAPER: dict[str, dict[MethodName, float]] = {
    "cifar10": {"fl-small": 0.60, "fl-large": 2.91, "sfl-cloud": 0.90, "emo": 0.83},
    "cifar100": {"fl-small": 0.004, "fl-large": 0.12, "sfl-cloud": 2.44, "emo": 0.34},
}
_GIB = 1 << 30


@figures.command("table3")
def main(argv: Sequence[str] | None = None) -> int:
    parser = paper.parser("Table III: GiB a round.", "Without --data-dir say --analytic.")
    parser.add_argument("--analytic", action="store_true", help="from the models alone: no data, no training")
    args = parser.parse_args(argv)
    if args.data_dir is None and not args.analytic:
        raise ConfigError("measured bytes need data: say --data-dir DIR, or --analytic for the raw column")
    rows = [row(args, dataset, method) for dataset in args.datasets for method in PAPER[dataset]]
    figures.write(args.json, rows)
    show(rows)
    return 0


def row(args: argparse.Namespace, dataset: str, method: MethodName) -> dict[str, Any]:
    """`sent`: EMO's share of batches, 1 where it was not measured; `sent_paper`: what its figure comes to."""
    plan = paper.plan(dataset, method, args.data_dir, args.seed)
    cells: dict[str, Any] = {"dataset": dataset, "method": method}
    sent, measured = 1.0, None
    if not args.analytic:
        works = paper.measure(plan, scenario.load(None), args.scale, args.workers, args.rounds)
        measured = statistics.fmean(_all_devices(work, plan.per_round) for work in works) / _GIB
        attempted = sum(work.attempted for work in works)
        sent = sum(work.sent for work in works) / attempted if attempted else 1.0
    raw = estimate.total(estimate.work(plan, paper.SAMPLES, sent=sent)) / _GIB
    cells |= {"gib_raw": raw, "gib_measured": measured, "paper": PAPER[dataset][method]}
    if method == "emo":
        every = estimate.total(estimate.work(plan, paper.SAMPLES)) - estimate.total(
            estimate.work(plan, paper.SAMPLES, sent=0.0)
        )
        extra = PAPER[dataset]["emo"] - PAPER[dataset]["fl-small"]
        cells |= {"sent": sent, "sent_paper": extra * _GIB / every}
    return cells


def _all_devices(work: RoundWork, per_round: int) -> float:
    """Bytes of a round with `per_round` devices like those that have worked."""
    return estimate.total(work) * per_round / len(work.devices)


def show(rows: Sequence[dict[str, Any]]) -> None:
    figures.heads("dataset", "method", "raw, GiB", "measured, GiB", "paper", "batches sent")
    for row in rows:
        measured = "" if row["gib_measured"] is None else _digits(row["gib_measured"])
        sent = f"{row['sent']:.1%} (paper: {row['sent_paper']:.1%})" if "sent" in row else ""
        raw, ours = _digits(row["gib_raw"]), _digits(row["paper"])
        figures.markdown(row["dataset"], row["method"], raw, measured, ours, sent)


def _digits(gib: float) -> str:
    """As the paper prints: two decimals, three below 0.01."""
    return f"{gib:.3f}" if gib < 0.01 else f"{gib:.2f}"


if __name__ == "__main__":
    sys.exit(main())
