"""Stacked bars of where a round's time goes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def bars(rows: Sequence[dict[str, Any]], groups: Sequence[str], path: Path) -> None:
    """A panel for each (dataset, wan), a bar a method: its `groups` in seconds, its `times_emo` at its end."""
    panels = list(dict.fromkeys((row["dataset"], row["wan"]) for row in rows))
    figure = Figure(figsize=(11, 2.6 * ((len(panels) + 1) // 2)), layout="constrained")
    axes = figure.subplots((len(panels) + 1) // 2, min(2, len(panels)), squeeze=False).flat
    for panel, axis in zip(panels, axes, strict=False):
        mine = [row for row in rows if (row["dataset"], row["wan"]) == panel][::-1]
        names, left = [row["method"] for row in mine], [0.0] * len(mine)
        for number, group in enumerate(groups):
            seconds = [row["groups"][group] for row in mine]
            axis.barh(names, seconds, left=left, color=f"C{number}", label=group)
            left = [start + part for start, part in zip(left, seconds, strict=True)]
        for name, end, row in zip(names, left, mine, strict=True):
            axis.annotate(
                f"{row['seconds']:.1f} s, {row['times_emo']:.1f}x",
                (end, name),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
        axis.set_title(f"{panel[0]}, WAN {panel[1]}", fontsize=9)
        axis.set_xlabel("seconds a round (virtual)", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.set_xlim(0, 1.3 * max(left))
    for axis in list(axes)[len(panels) :]:
        axis.set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=3, fontsize=8)
    figure.savefig(path, dpi=150)
