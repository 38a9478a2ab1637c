"""Figure 4 of the paper: test accuracy as training goes on, over rounds, bytes and virtual time.

    python -m testbed.experiments.figure4 --data-dir DIR --plot FILE --json FILE

The runs are those of table2: with the same `--work DIR` they are not run again. Virtual time is the scenario's
(figure5.py shows where it goes); EMO's points are those of the ensemble as it would be served after that round.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from testbed import figures
from testbed.experiments import recipe
from testbed.experiments.table2 import METHODS
from testbed.simulation import compare
from testbed.simulation.run_folder import Run


def main(argv: Sequence[str] | None = None) -> int:
    parser = recipe.parser("Figure 4: accuracy over rounds, bytes and time.", METHODS)
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help=".svg or .png; one a dataset: FILE-DATASET (default: no plot)",
    )
    return recipe.main("figure4", parser.parse_args(argv), _show)


def rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each run and each round in which it was measured. Bytes and virtual seconds so far."""
    return [
        {
            "dataset": run.header.plan.data.name,
            "method": run.header.plan.method,
            "seed": run.header.plan.seed,
            "round": row.round,
            "accuracy": row.accuracies["model"],
            "lan_bytes": row.total.lan,
            "wan_bytes": row.total.wan,
            "virtual_s": row.total.virtual_s,
        }
        for run in runs
        for row in compare.measured(run)
    ]


def _show(runs: list[Run], args: argparse.Namespace) -> None:
    figures.write(args.json, rows(runs))
    for dataset in args.datasets:
        groups = compare.groups([run for run in runs if run.header.plan.data.name == dataset])
        print(compare.markdown(compare.table(groups)))
        if args.plot:
            many = f"-{dataset}" if len(args.datasets) > 1 else ""
            compare.curves(groups, args.plot.with_stem(args.plot.stem + many))


if __name__ == "__main__":
    sys.exit(main())
