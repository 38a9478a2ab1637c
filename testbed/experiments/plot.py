"""Plots of a study's rows."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from testbed.experiments.arm import title


def frontier(rows: list[dict[str, Any]], path: Path) -> None:
    """Bagged accuracy over the reduction: a point an arm (mean over seeds), its seeds faint beside it."""
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    arms: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        arms[title(row), row["codec"]].append(row)
    codecs = sorted({codec for _, codec in arms})
    for (policy, codec), mine in arms.items():
        colour = f"C{codecs.index(codec) % 10}"
        x, y = ([row[key] for row in mine] for key in ("reduction", "accuracy_bagged"))
        axes.scatter(x, y, s=12, color=colour, alpha=0.35, linewidths=0)
        axes.scatter([fmean(x)], [fmean(y)], s=45, color=colour)
        axes.annotate(f"{policy} {codec}", (fmean(x), fmean(y)), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.axhline(fmean(row["accuracy_fl"] for row in rows), color="grey", linewidth=1, linestyle=":")
    axes.annotate(
        "federated learning alone",
        (0, fmean(row["accuracy_fl"] for row in rows)),
        xycoords=("axes fraction", "data"),
        xytext=(4, 3),
        textcoords="offset points",
        fontsize=8,
        color="grey",
    )
    axes.axvline(110, color="grey", linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.set_xlabel("times fewer bytes than split federated learning")
    axes.set_ylabel("accuracy of the bagged ensemble, %")
    axes.margins(x=0.15)
    figure.savefig(path, dpi=150)


def curves(rows: list[dict[str, Any]], name: Callable[[dict[str, Any]], str], path: Path) -> None:
    """Left, bagged accuracy over rounds, a line an arm (mean over seeds); right, the last round's over the mean age of
    what is cached."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    last = max(row["round"] for row in rows)
    for number, arm in enumerate(dict.fromkeys(map(name, rows))):
        mine = [row for row in rows if name(row) == arm]
        rounds = sorted({row["round"] for row in mine})
        means = [fmean(row["accuracy_bagged"] for row in mine if row["round"] == at) for at in rounds]
        left.plot(rounds, means, label=arm, color=f"C{number % 10}", linestyle="-" if number < 10 else "--")
        end = [row for row in mine if row["round"] == last]
        right.scatter([row["mean_age"] for row in end], [row["accuracy_bagged"] for row in end], s=30)
    left.set_xlabel("round")
    right.set_xlabel("mean age of the cached batches, rounds")
    left.set_ylabel("accuracy of the bagged ensemble, %")
    left.legend(fontsize=8)
    figure.savefig(path, dpi=150)
