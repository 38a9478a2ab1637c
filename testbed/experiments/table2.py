"""Table II of the paper: test accuracy of the four methods; mean and standard deviation over seeds.

    python -m testbed.experiments.table2 --data-dir DIR --json FILE
    python -m testbed.experiments.table2 --data-dir DIR --scale paper --datasets cifar10 cifar100

SFL's weights are the same at an edge and in the cloud; it is run in the cloud. EMO's figure is that of the ensemble of
its overlays, mean of probabilities; `parts` has each overlay's own, and the FL model's.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from testbed import figures
from testbed.experiments import recipe
from testbed.plan import MethodName
from testbed.simulation.run_folder import Run

METHODS: tuple[MethodName, ...] = ("fl-small", "fl-large", "sfl-cloud", "emo")
_SFL = {"sfl-cloud": "sfl", "sfl-edge": "sfl"}
PAPER = {
    "cifar10": {"fl-small": 76.57, "fl-large": 76.22, "sfl": 77.13, "emo": 79.51},
    "cifar100": {"fl-small": 24.92, "fl-large": 33.63, "sfl": 41.31, "emo": 42.69},
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = recipe.parser("Table II: test accuracy, percent.", METHODS)
    return recipe.main("table2", parser.parse_args(argv), _show)


def rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each dataset and method; accuracies in percent, those of the seeds in their order."""
    table = []
    kinds = dict.fromkeys((run.header.plan.data.name, run.header.plan.method) for run in runs)
    for dataset, method in kinds:
        mine = [run for run in runs if (run.header.plan.data.name, run.header.plan.method) == (dataset, method)]
        ends = [run.rows[-1].accuracies for run in mine]
        values = [each["model"] for each in ends]
        table.append(
            {
                "dataset": dataset,
                "method": method,
                "rounds": mine[0].header.plan.rounds,
                "seeds": [run.header.plan.seed for run in mine],
                "accuracies": values,
                "accuracy": statistics.fmean(values),
                "spread": statistics.stdev(values) if len(values) > 1 else None,
                "parts": {name: statistics.fmean(each[name] for each in ends) for name in ends[0]},
                "paper": PAPER[dataset][_SFL.get(method, method)],
            }
        )
    return table


def _show(runs: list[Run], args: argparse.Namespace) -> None:
    table = rows(runs)
    figures.write(args.json, table)
    figures.heads("dataset", "method", "accuracy %", "seeds", "its parts", "paper")
    for row in table:
        spread = "" if row["spread"] is None else f" ± {row['spread']:.2f}"
        parts = ", ".join(f"{name} {value:.2f}" for name, value in row["parts"].items() if name != "model")
        accuracy, seeds = f"{row['accuracy']:.2f}{spread}", len(row["seeds"])
        figures.markdown(row["dataset"], row["method"], accuracy, seeds, parts, f"{row['paper']:.2f}")


if __name__ == "__main__":
    sys.exit(main())
