"""Figure 5 of the paper: time a round in its testbed for the five methods, and where it goes.

    python -m testbed.experiments.figure5 --json FILE --plot FILE
    python -m testbed.experiments.figure5 --data-dir DIR

Seconds are a virtual clock's, for the machines and links of a scenario (`--scenario`; the paper's testbed): its
assumptions are printed, and both readings of the WAN, which the paper leaves open: one line to the cloud that all
share, or one for each. Bytes are those of table3's raw column, and for EMO's activations what the codec makes of
noise; with `--data-dir`, those of frames of rounds that are run. `emo, small models`: global models in fp16, updates
as delta-int8 (off by default), which FL alone may use too.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from emo.config import Training
from emo.errors import ConfigError, nearest
from testbed import figures
from testbed.experiments import paper
from testbed.plan import METHODS, MethodName, Plan, RoundWork
from testbed.timing import costs, estimate
from testbed.timing.round_time import round_time
from testbed.timing.scenario import Scenario, load

_ROUNDS = 10  # other devices are sampled in each
_SMALL = "emo, small models"
PAPER = {"sfl-cloud": 6.9, "fl-large": 12.5}  # "up to": times EMO's, over both data sets
GROUPS = {
    "communication": ("download", "upload", "activations", "gradients", "server's model"),
    "devices compute": ("compute",),
    "server computes": ("server",),
}


@figures.command("figure5")
def main(argv: Sequence[str] | None = None) -> int:
    parser = paper.parser("Figure 5: virtual time a round.", "Without --data-dir, bytes from the models.")
    parser.add_argument("--scenario", type=Path, metavar="FILE", help="YAML (default: the paper's testbed)")
    parser.add_argument(
        "--only",
        metavar="CLASS",
        help="all devices are of this class of the scenario (default: as it has them)",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="as .svg or .png (default: no plot)")
    args = parser.parse_args(argv)
    scenario = _only(load(args.scenario), args.only)
    rows = [row for dataset in args.datasets for row in rows_of(args, dataset, scenario)]
    assumed = dict.fromkeys(
        line
        for dataset in args.datasets
        for method in METHODS
        for here in _readings(scenario).values()
        for line in here.assumptions(paper.plan(dataset, method))
    )
    figures.write(args.json, rows)
    show(rows, assumed)
    if args.plot:
        from testbed.experiments.bars import bars  # noqa: PLC0415 - matplotlib is an extra

        bars(rows, list(GROUPS), args.plot)
    return 0


def _only(scenario: Scenario, name: str | None) -> Scenario:
    if name is None:
        return scenario
    classes = {each.name: each for each in scenario.devices}
    if name not in classes:
        raise ConfigError(f"--only: no device class {name!r} in {scenario.name}; {nearest(name, classes)}")
    return scenario.model_copy(update={"devices": (classes[name].model_copy(update={"share": 1.0}),)})


def rows_of(args: argparse.Namespace, dataset: str, scenario: Scenario) -> list[dict[str, Any]]:
    """A row for each method and reading of the WAN: mean seconds over rounds, their parts, times EMO's."""
    rows: list[dict[str, Any]] = []
    methods: list[tuple[str, MethodName]] = [*((name, name) for name in METHODS), (_SMALL, "emo")]
    for name, method in methods:
        plan = paper.plan(dataset, method, args.data_dir, args.seed)
        if name == _SMALL:
            plan = plan.model_copy(update={"training": Training(update="delta-int8")})
        works = _works(args, plan, scenario, small=name == _SMALL)
        for wan, here in _readings(scenario).items():
            row: dict[str, Any] = {"dataset": dataset, "method": name, "wan": wan}
            rows.append(row | _mean(plan, here, works))
    for row in rows:
        (emo,) = [each for each in rows if each["method"] == "emo" and each["wan"] == row["wan"]]
        row["times_emo"] = row["seconds"] / emo["seconds"]
        row["paper_up_to"] = PAPER.get(row["method"])
    return sorted(rows, key=lambda row: row["wan"], reverse=True)


def _readings(scenario: Scenario) -> dict[str, Scenario]:
    shared, own = (
        scenario.model_copy(update={"wan": scenario.wan.model_copy(update={"shared": shared})})
        for shared in (True, False)
    )
    return {"shared": shared, "each its own": own}


def _works(args: argparse.Namespace, plan: Plan, scenario: Scenario, *, small: bool) -> list[RoundWork]:
    scenario.check(plan)
    bare = [
        estimate.work(plan, paper.SAMPLES, number, compressed=True, model="fp16" if small else "fp32")
        for number in range(1, _ROUNDS + 1)
    ]
    if args.data_dir is None or small:
        return bare
    measured = paper.measure(plan, scenario, args.scale, args.workers, args.rounds)
    return [paper.spread(plan, measured[place % len(measured)], like) for place, like in enumerate(bare)]


def _mean(plan: Plan, scenario: Scenario, works: Sequence[RoundWork]) -> dict[str, Any]:
    """`seconds`; `parts`, those of the last device, adding up to it; `groups`: parts by GROUPS; `overlay`: the share of
    a round that the busiest edge trains in."""
    times = [round_time(plan, scenario, work, costs.of(plan.model)) for work in works]
    seconds = statistics.fmean(time.seconds for time in times)
    parts: dict[str, float] = defaultdict(float)
    for time in times:
        for name, part in time.parts.items():
            parts[name] += part / len(times)
    groups = {
        group: sum(part for name, part in parts.items() if name.removesuffix(" queue") in names)
        for group, names in GROUPS.items()
    }
    overlay = max((max(time.beside.values(), default=0.0) for time in times), default=0.0)
    return {"seconds": seconds, "parts": dict(parts), "groups": groups, "overlay": overlay / seconds}


def show(rows: Sequence[dict[str, Any]], assumed: Iterable[str]) -> None:
    for line in assumed:
        print(f"assumed: {line}")
    print()
    first, *others = GROUPS
    names = (f"of these {first}", *others, "times EMO's", "paper")
    figures.heads("dataset", "WAN", "method", "seconds", *names)
    for row in rows:
        seconds = [f"{value:.1f}" for value in (row["seconds"], *row["groups"].values(), row["times_emo"])]
        up_to = f"up to {row['paper_up_to']}" if row["paper_up_to"] else ""
        figures.markdown(row["dataset"], row["wan"], row["method"], *seconds, up_to)


if __name__ == "__main__":
    sys.exit(main())
