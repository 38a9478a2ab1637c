"""An edge's whole state beside its cache folder, so that another process goes on with the same bits.

    FOLDER/edge.json           NodeState
    FOLDER/edge.safetensors    arrays now/... and kept/..., as checkpoint.State names them

Knows fields, arrays and two files. Knows no node and no cache; for a simulation: nothing is synced, and what an edge
in the field keeps through a power cut is checkpoint.py's and log_file.py's.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
from pydantic import Field
from safetensors import SafetensorError

from edge_app.intervals.controller import Row
from edge_app.overlay import augment
from edge_app.overlay.checkpoint import State
from emo import files
from emo.config import Id, Section
from emo.errors import CacheError, ModelError
from emo.wire.messages import Count

_JSON = 256 << 20  # bytes: the sampler's state and the controller's log for a million batches
_HEADER = 1 << 20  # of a file of arrays
_JSON_NAME, _ARRAYS_NAME = "edge.json", "edge.safetensors"

Seconds = Annotated[float, Field(ge=0)]


class TrainingState(Section):
    """`now`, `kept`: where the arrays of these names stand, in applied steps and random numbers."""

    progress: float
    spent: Count
    refused_steps: Count
    rollbacks: Count
    steps: Count
    random: dict[str, Any]
    kept_steps: Count
    kept_random: dict[str, Any]
    judge: dict[str, Any]


class NodeState(Section):
    """`log`: the controller's rows, in their order (device, batch, version, score, interval, counter); a score of NaN
    is null. `reports`: device -> batches offered, let through; `served`, `sizes`: what Guard
    has of the same name."""

    run: Id
    round: Count
    rounds: Count
    newest: Count
    received: Count
    missed: Count
    last: Seconds
    finishing: Seconds | None
    reports: dict[Id, tuple[Count, Count]]
    served: dict[Id, Count]
    sizes: dict[Id, Count]
    log: list[tuple[Id, Count, Count, float | None, Seconds, Count]]
    nan_scores: Count
    guarded: Count
    sampler: dict[str, Any]
    training: TrainingState

    def rows(self) -> list[Row]:
        return [
            Row(device, batch, version, math.nan if score is None else score, interval, counter)
            for device, batch, version, score, interval, counter in self.log
        ]


@dataclass(frozen=True)
class Snapshot:
    """`now`: the overlay's training; `kept`: what it would roll back to."""

    node: NodeState
    now: State
    kept: State


def log_of(rows: list[Row]) -> list[tuple[str, int, int, float | None, float, int]]:
    """As NodeState has it."""
    return [
        (
            row.device,
            row.batch,
            row.version,
            row.score if math.isfinite(row.score) else None,
            row.interval,
            row.counter,
        )
        for row in rows
    ]


def write(folder: Path, snapshot: Snapshot) -> None:
    """`folder` exists. Raises OSError."""
    arrays = {f"now/{name}": array.cpu() for name, array in snapshot.now.arrays.items()}
    arrays |= {f"kept/{name}": array.cpu() for name, array in snapshot.kept.arrays.items()}
    files.write(folder / _ARRAYS_NAME, safetensors.torch.save(arrays), synced=False)
    files.write(folder / _JSON_NAME, snapshot.node.model_dump_json().encode(), synced=False)


def read(folder: Path, like: State) -> Snapshot:
    """What `write` was given. Raises CacheError where it is missing, damaged, or not of an overlay as `like` is one."""
    # Of a state: the weights, the mean of the trained ones, and a momentum as large as that.
    most = 3 * sum(array.nbytes for name, array in like.arrays.items() if name.startswith("weights/"))
    text = files.whole(folder / _JSON_NAME, _JSON, CacheError)
    node = files.record(NodeState, text, str(folder / _JSON_NAME), CacheError)
    whole = files.whole(folder / _ARRAYS_NAME, 2 * most + _HEADER, CacheError)
    try:
        arrays = safetensors.torch.load(bytes(whole))
        for random in (node.training.random, node.training.kept_random):
            augment.generator(random)
    except (SafetensorError, KeyError, TypeError, ValueError, ModelError) as error:
        raise CacheError(f"{folder}: does not hold an edge's state: {error}") from error
    said, parts = node.training, []
    for part, steps, random in (
        ("now", said.steps, said.random),
        ("kept", said.kept_steps, said.kept_random),
    ):
        found = {name.partition("/")[2]: a for name, a in arrays.items() if name.startswith(f"{part}/")}
        parts.append(State(steps, found, random))
        wrong = parts[-1].misfit(like)
        if wrong:
            raise CacheError(f"{folder}: holds the state of another overlay: {wrong}")
    return Snapshot(node, *parts)
