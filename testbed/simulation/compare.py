"""`emo compare`: simulated runs beside each other, as a table and as plots.

Runs that differ in their seed only are one line: the mean, and
the spread (standard deviation) of what differs.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from emo.errors import ConfigError
from testbed import units
from testbed.simulation.run_folder import Row, Run

GIB, MIB = 2**30, 2**20
_QUEUE = " queue"
# What a served accuracy is drawn over: its label, and what a row has of it.
OVER: dict[str, Callable[[Row], float]] = {
    "round": lambda row: row.round,
    "traffic so far, MiB (LAN and WAN)": lambda row: (row.total.lan + row.total.wan) / MIB,
    "virtual time, minutes": lambda row: row.total.virtual_s / 60,
}


class Group:
    """Runs of one plan, seeds apart. `name`: how it is called beside the others."""

    def __init__(self, runs: list[Run]) -> None:
        self.runs = runs
        self.plan = runs[0].header.plan
        self.name: str = self.plan.method

    def mean(self, value: Callable[[Row], float], rows: Callable[[Run], Row] = lambda run: run.rows[-1]) -> float:
        return fmean(value(rows(run)) for run in self.runs)

    def last(self) -> list[float]:
        """The served model's accuracy when each run was measured last, percent."""
        return [measured(run)[-1].accuracies["model"] for run in self.runs if measured(run)]


def run(args: argparse.Namespace) -> int:
    """Prints the table, or its rows as JSON. Raises ConfigError, DataError where a folder holds no run."""
    compared = read(args.runs)
    rows = table(compared)
    text = markdown(rows)
    print(json.dumps(rows, indent=1) if args.json else text)
    if args.out is not None:
        try:
            args.out.mkdir(parents=True, exist_ok=True)
            assumed = dict.fromkeys(line for group in compared for line in group.runs[0].header.assumptions)
            notes = "".join(f"- {line}\n" for line in assumed)
            (args.out / "compare.md").write_text(f"{text}\n\nAssumed:\n\n{notes}", encoding="utf-8")
            curves(compared, args.out / f"accuracy.{args.format}")
            bars(compared, args.out / f"round.{args.format}")
        except OSError as error:
            raise ConfigError(f"{args.out}: cannot be written: {error.strerror}") from error
    return 0


def read(folders: Sequence[Path]) -> list[Group]:
    """The runs in `folders`, grouped. Raises ConfigError, DataError."""
    runs = [Run(folder) for folder in folders]
    for run in runs:
        if not run.rows:
            raise ConfigError(f"{run.out}: no round is over yet, there is nothing to compare")
    return groups(runs)


def groups(runs: Sequence[Run]) -> list[Group]:
    """In the order of the first of each. Where a method stands in several, its folder is named beside it."""
    by_kind: dict[str, list[Run]] = {}
    for run in runs:
        by_kind.setdefault(_kind(run), []).append(run)
    compared = [Group(alike) for alike in by_kind.values()]
    methods = [group.plan.method for group in compared]
    for group in compared:
        if methods.count(group.plan.method) > 1:
            group.name = f"{group.plan.method} ({group.runs[0].out.name})"
    return compared


def _kind(run: Run) -> str:
    """The same for runs that differ in their seeds only, and in where their data lies."""
    values = run.header.model_dump(mode="json", exclude={"version", "assumptions"})
    del values["plan"]["seed"], values["plan"]["data"]["seed"], values["plan"]["data"]["dir"]
    return json.dumps(values, sort_keys=True)


def measured(run: Run) -> list[Row]:
    return [row for row in run.rows if "model" in row.accuracies]


def table(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """A row a group. Bytes and seconds are those of a mean round: `real_s` here, `virtual_s` in the scenario."""
    rows = []
    for group in groups:
        plan, accuracies = group.plan, group.last()

        def a_round(value: Callable[[Row], float], group: Group = group) -> float:
            return group.mean(lambda row: value(row) / row.round)

        rows.append(
            {
                "name": group.name,
                "method": plan.method,
                "dataset": plan.data.name,
                "model": f"{plan.model.name} x {plan.model.width:g}",
                "seeds": len(group.runs),
                "rounds": min(len(run.rows) for run in group.runs),
                "accuracy": fmean(accuracies) if accuracies else None,
                "spread": stdev(accuracies) if len(accuracies) > 1 else None,
                "lan_gib": a_round(lambda row: row.total.lan / GIB),
                "wan_gib": a_round(lambda row: row.total.wan / GIB),
                "sent_fraction": group.runs[0].total.sent_fraction
                and group.mean(lambda row: row.total.sent_fraction or 0.0),
                "virtual_s": a_round(lambda row: row.total.virtual_s),
                "real_s": a_round(lambda row: row.total.real_s),
            }
        )
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    names = [
        *("run", "dataset", "model", "rounds", "seeds", "accuracy %", "LAN a round", "WAN a round"),
        *("sent %", "virtual time a round", "real time a round"),
    ]
    lines = [f"| {' | '.join(names)} |", "|---|---|---|" + "--:|" * 8]
    for row in rows:
        spread = "" if row["spread"] is None else f" ± {row['spread']:.2f}"
        cells = [
            row["name"],
            row["dataset"],
            row["model"],
            str(row["rounds"]),
            str(row["seeds"]),
            "-" if row["accuracy"] is None else f"{row['accuracy']:.2f}{spread}",
            units.size(row["lan_gib"] * GIB),
            units.size(row["wan_gib"] * GIB),
            "-" if row["sent_fraction"] is None else f"{100 * row['sent_fraction']:.1f}",
            units.seconds(row["virtual_s"]),
            units.seconds(row["real_s"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def curves(groups: Sequence[Group], path: Path) -> None:
    """Accuracy of the served model over rounds, bytes and virtual time: a line a group (mean over its seeds, at the
    rounds that all of them have), its seeds faint beside it. .svg or .png."""
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    for axes, (label, value) in zip(figure.subplots(1, 3), OVER.items(), strict=True):
        for number, group in enumerate(groups):
            _curve(axes, group, value, f"C{number % 10}")
        axes.set_xlabel(label)
        axes.set_ylabel("test accuracy, %")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    _save(figure, path)


def _curve(axes: Axes, group: Group, value: Callable[[Row], float], colour: str) -> None:
    points = [{row.round: (value(row), row.accuracies["model"]) for row in measured(run)} for run in group.runs]
    common = sorted(set.intersection(*(set(each) for each in points)))
    if len(points) > 1:
        for each in points:
            axes.plot(*zip(*each.values(), strict=True), color=colour, alpha=0.25, linewidth=0.8)
    mean = [tuple(fmean(each[at][axis] for each in points) for axis in (0, 1)) for at in common]
    if mean:
        axes.plot(*zip(*mean, strict=True), color=colour, label=group.name, marker=".", markersize=4)


def bars(groups: Sequence[Group], path: Path) -> None:
    """Left, bytes a round on each link; right, virtual seconds a round and where they go. .svg or .png."""
    figure = Figure(figsize=(13, 2.4 + 0.5 * len(groups)), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = {
        "LAN": [group.mean(lambda row: row.total.lan / row.round / MIB) for group in groups],
        "WAN": [group.mean(lambda row: row.total.wan / row.round / MIB) for group in groups],
    }
    kinds = dict.fromkeys(kind for group in groups for run in group.runs for row in run.rows for kind in row.parts)
    seconds = {
        kind: [fmean(fmean(row.parts.get(kind, 0.0) for row in run.rows) for run in group.runs) for group in groups]
        for kind in kinds
    }
    names = [group.name for group in groups]
    _stacked(left, names, sizes, "MiB a round")
    _stacked(right, names, seconds, "virtual seconds a round, by where they go")
    _save(figure, path)


def _stacked(axes: Axes, names: Sequence[str], parts: Mapping[str, Sequence[float]], label: str) -> None:
    """A bar a name, of what each of `parts` adds to it. Waiting in a queue is hatched in the colour of what it is for."""
    start = [0.0] * len(names)
    whole = list(dict.fromkeys(kind.removesuffix(_QUEUE) for kind in parts))
    for kind, values in sorted(parts.items(), key=lambda part: whole.index(part[0].removesuffix(_QUEUE))):
        colour = f"C{whole.index(kind.removesuffix(_QUEUE)) % 10}"
        hatch, alpha = ("///", 0.5) if kind.endswith(_QUEUE) else ("", 1.0)
        axes.barh(names, values, left=start, label=kind, color=colour, hatch=hatch, alpha=alpha)
        start = [a + b for a, b in zip(start, values, strict=True)]
    for place, total in enumerate(start):
        axes.annotate(f" {total:.3g}", (total, place), va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(start) or 1)
    axes.set_xlabel(label)
    axes.legend(fontsize=7, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)


def _save(figure: Figure, path: Path) -> None:
    with rc_context({"svg.hashsalt": "emo"}):  # the same runs give the same file
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
