"""What is logged of a run: all its curves so far, as points, its settings and its model.

A picture holds the whole run, so that a log that was away, or was begun by an earlier process, takes what it lacks of the
newest one. Names of curves: the figure, then the edge, so that edges are drawn beside each other.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloud_app.watch.run_state import COLUMNS, RunProgress
from cloud_app.watch.view import View
from emo.logs import printable

Setting = bool | int | float | str

# Of a round: what it is called here, and in the history.
_ROUND = {
    "fl/accuracy": "accuracy",
    "fl/loss": "loss",
    "round/seconds": "seconds",
    "round/updates": "updates",
    "round/asked": "sampled",
    "round/left_out": "left_out",
    "bytes/split_learning": "sfl_bytes",
}
# Of all rounds so far, as nodes had told it when one was closed.
_SUMS = {
    "bytes/fl": "fl",
    "bytes/activations": "activations",
    "bytes/reports": "reports",
    "batches/sent_share": "sent_share",
}
# Of an edge, by its overlay's step.
_EDGE = {
    "overlay_loss": "loss",
    "cache_entries": "entries",
    "cache_bytes": "bytes",
    "cache_age": "age",
    "interval": "interval",
}
_SETTINGS = 200
_TEXT = 500  # characters of a setting


@dataclass(frozen=True)
class Point:
    """`step`: a round, or the step of an edge's overlay. `time`: Unix."""

    name: str
    step: int
    time: float
    value: float


@dataclass(frozen=True)
class Picture:
    """`points`: those of one name in the order of their steps, each step once. `over`: the run is. `model`: its ONNX file,
    where it can be reached."""

    run: str
    settings: Mapping[str, Setting]
    points: Sequence[Point]
    over: bool = False
    model: Path | None = None


@dataclass(frozen=True)
class Seen:
    """What a picture is made of: a copy, so that the view need not be held meanwhile. `edges`: as GET /api/history has them."""

    progress: RunProgress
    edges: Mapping[str, Any]


def seen(view: View) -> Seen:
    progress = copy(view.progress)
    progress.rows, progress.closed_at = dict(progress.rows), dict(progress.closed_at)
    progress.sums, progress.result = dict(progress.sums), dict(progress.result)
    return Seen(progress, view.history()["edges"])


def picture(of: Seen, now: float, model: Path | None = None) -> Picture | None:
    """None: there is no run."""
    progress = of.progress
    if not progress.run:
        return None
    over = progress.phase == "done" and bool(progress.result)
    points = [*_rounds(progress, now), *_sums(progress), *_edges(of.edges)]
    if over:
        last = max(progress.rows, default=progress.round)
        at = progress.closed_at.get(last, now)
        points += [Point(f"result/{_name(key)}", last, at, value) for key, value in progress.result.items()]
    shown: dict[str, Setting] = {"rounds": progress.rounds} if progress.rounds else {}
    told = {_name(key): _plain(value) for key, value in list(progress.settings.items())[:_SETTINGS]}
    return Picture(progress.run, shown | told, _once(points), over, model if over else None)


def _rounds(progress: RunProgress, now: float) -> Iterator[Point]:
    """`now`: of a round that was closed while nobody watched."""
    for number, row in sorted(progress.rows.items()):
        for name, column in _ROUND.items():
            value = row[COLUMNS.index(column)]
            if value is not None and (value or column != "sfl_bytes"):  # a simulation does not say
                yield Point(name, number, progress.closed_at.get(number, now), value)


def _sums(progress: RunProgress) -> Iterator[Point]:
    """Without zeros: of a record of the cloud alone nothing else is known."""
    for number, sums in sorted(progress.sums.items()):
        for name, key in _SUMS.items():
            if value := sums[key]:
                yield Point(name, number, progress.closed_at[number], value)


def _edges(edges: Mapping[str, Any]) -> Iterator[Point]:
    for edge, columns in edges.items():
        for place, step in enumerate(columns["step"]):
            for name, column in _EDGE.items() if step is not None else ():
                if (value := columns[column][place]) is not None:
                    yield Point(f"{name}/{edge}", int(step), columns["time"][place], value)


def _once(points: Iterable[Point]) -> list[Point]:
    """The points whose step is beyond that of all before it of its name: an edge may stand still, or go back to its
    checkpoint."""
    last: dict[str, int] = {}
    kept = []
    for point in points:
        if point.step > last.get(point.name, -1):
            last[point.name] = point.step
            kept.append(point)
    return kept


def _name(text: str) -> str:
    """For every tool: MLflow takes few signs, and no `..` as a part of a path."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text).lstrip(".") or "_"


def _plain(value: Any) -> Setting:
    if isinstance(value, bool | int | float):
        return value
    return "none" if value is None else printable(value, _TEXT)
