"""Plots of a study's rows. Knows rows and matplotlib, no experiment."""

from collections import defaultdict
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
        axes.annotate(
            f"{policy} {codec}", (fmean(x), fmean(y)), xytext=(5, 5), textcoords="offset points", fontsize=8
        )
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
