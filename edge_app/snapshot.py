"""An edge's memory, and as a file beside its cache folder, so that another process goes on with the same bits.

    FOLDER/edge.safetensors    snapshot_file's; arrays now/... and kept/..., as checkpoint.State names them

The file is for a simulation: it is not synced. What an edge in the field keeps through a power cut is
overlay/checkpoint.py's and intervals/log_file.py's.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from edge_app.device_quota import QuotaState
from edge_app.intervals.controller import ControllerState
from edge_app.overlay.checkpoint import Position, State, TrainingState
from emo import snapshot_file
from emo.config import Id
from emo.errors import CacheError
from emo.wire.messages import Count

NAME = "edge.safetensors"
_KIND = "edge"
_OLD = "Run the simulation anew, or finish it with the version of EMO that began it."

Seconds = Annotated[float, Field(ge=0)]


class NodeState(BaseModel, extra="forbid"):
    """All that an edge knows of its run beside its cache and the overlay's arrays."""

    run: Id | Annotated[str, Field(max_length=0)] = ""
    round: Count = 0
    rounds: Count = 0
    newest: Count = 0  # version of a batch
    received: Count = 0  # batches
    missed: Count = 0  # batches that may have been offered before a restart
    last: Seconds = 0.0  # when a batch or a report came
    finishing: Seconds | None = None  # since when the cloud waits for the overlay
    quota: QuotaState = Field(default_factory=QuotaState)
    controller: ControllerState = Field(default_factory=ControllerState)
    training: TrainingState = Field(default_factory=TrainingState)


@dataclass(frozen=True)
class Snapshot:
    """`sampler`: the cache's; `now`: the overlay's training; `kept`: what it would roll back to."""

    node: NodeState
    sampler: dict[str, Any]
    now: State
    kept: State


class _Record(BaseModel, extra="forbid"):
    node: NodeState
    sampler: dict[str, Any]
    now: Position
    kept: Position


def write(folder: Path, snapshot: Snapshot) -> None:
    """`folder` exists. Raises OSError."""
    now, kept = snapshot.now, snapshot.kept
    record = _Record(node=snapshot.node, sampler=snapshot.sampler, now=now.position(), kept=kept.position())
    arrays = now.numpy("now/") | kept.numpy("kept/")
    snapshot_file.write(folder / NAME, _KIND, record, arrays, synced=False)


def read(folder: Path, like: State) -> Snapshot:
    """What `write` was given. Raises CacheError where it is missing, damaged, or not of an overlay as `like` is one; ConfigError
    where another version of EMO wrote it."""
    # Of a state: the weights, the mean of the trained ones, and a momentum as large as that.
    most = 3 * sum(array.nbytes for name, array in like.arrays.items() if name.startswith("weights/"))
    record, arrays = snapshot_file.read(folder / NAME, _KIND, _Record, 2 * most, CacheError, _OLD)
    now, kept = State.of(record.now, arrays, "now/"), State.of(record.kept, arrays, "kept/")
    if wrong := now.misfit(like) or kept.misfit(like):
        raise CacheError(f"{folder}: holds the state of another overlay: {wrong}")
    return Snapshot(record.node, record.sampler, now, kept)
