"""The state of a run: the memory of the cloud's node, which a checkpoint writes and the next process resumes from."""

import functools
import math
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cloud_app.aggregation import exact_mean
from cloud_app.ensemble.run_archive import Edge
from emo.config import CloudConfig, Id, Model, Positive, Section
from emo.models import split_network
from emo.wire.compression import restore, shrink
from emo.wire.messages import Count, HistoryRow, Weights

Phase = Literal["waiting", "collecting", "overlays", "done"]
MOVES: dict[Phase, set[Phase]] = {
    "waiting": {"collecting"},
    "collecting": {"waiting", "overlays"},
    "overlays": {"done"},
    "done": set(),
}
Reason = Literal["offline", "late", "refused", "cannot-train"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
_HISTORY = 1000  # rounds that are kept for observers
# What may change between two processes of one run: it changes no bit of what is trained.
_FREE = {
    "rounds": {"min_devices", "quorum", "deadline_s", "give_up_s", "evaluate_every"},
    "overlays": {"start_s", "wait_s", "combine", "head", "fit"},
    "data": {"dir"},
}


class Closed(Section):
    """A round that is over, as it will stand in the journal. `members`: device -> samples; `left_out`: device -> why. Of the
    members: whose update was shortened, and whose the rule did not take (aggregation/aggregator.py)."""

    round: Positive
    updates: Count
    sampled: Count
    loss: Finite
    seconds: Finite
    members: dict[Id, Count]
    left_out: dict[Id, Reason]
    clipped: tuple[Id, ...] = ()
    outvoted: tuple[Id, ...] = ()


class _Memory(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)


class Opened(_Memory):
    """A round that collects updates. `sampled`: who was asked; `cap`: the most samples that one device counts for;
    `heard`: device -> samples that it counts for, of the updates that have come; `loss`: the sum of their losses, each
    times these."""

    sampled: tuple[Id, ...]
    cap: Positive | None = None
    heard: dict[Id, Positive] = Field(default_factory=dict)
    loss: Finite = 0.0


class Record(_Memory):
    """The fields of `State`. `settings`: those that the run cannot change any more. `devices`: those that are here and take
    part, with their samples; `edges`: those that are here. `opened`: the round, while it collects; `before`: the last
    closed round, and who was counted in it; `closed`: a round whose line is still to be written. `trained`: samples that
    passed through training; `updates`: averaged so far. `answered`: edges that have sent an overlay, trained or not;
    `overlays`: the trained ones. `history`: of closed rounds, for observers."""

    settings: dict[str, Any]
    run: Id
    phase: Phase = "waiting"
    round: Positive = 1
    devices: dict[Id, Count] = Field(default_factory=dict)
    edges: set[Id] = Field(default_factory=set)
    opened: Opened | None = None
    before: tuple[Count, list[Id]] = (0, [])
    closed: Closed | None = None
    trained: Count = 0
    updates: Count = 0
    answered: set[Id] = Field(default_factory=set)
    overlays: dict[Id, Edge] = Field(default_factory=dict)
    history: list[HistoryRow] = Field(default_factory=list)

    @model_validator(mode="after")
    def _agrees(self) -> "Record":
        if (self.opened is None) == (self.phase == "collecting"):
            raise ValueError("a round is open in phase collecting, and only there")
        return self


class State(Record):
    """`weights`: the global model that the round starts from. `sum`: of the updates in `opened.heard`; None where they
    are kept one by one, and before the first round. `overlay_weights` by edge, of those in `overlays`."""

    weights: Weights = Field(exclude=True)
    sum: exact_mean.Sum | None = Field(default=None, exclude=True)
    overlay_weights: dict[str, dict[str, np.ndarray]] = Field(default_factory=dict, exclude=True)


def sfl_bytes(config: CloudConfig, state: State) -> int:
    """What split federated learning (SplitFed V1) sends for the same rounds, raw fp32: each sample's activation
    up and its gradient down in every epoch, and the trunk down and up for every update."""
    split = _split(config.model)
    trunk = sum(array.nbytes for name, array in state.weights.items() if name.startswith("trunk."))
    return 2 * 4 * split * state.trained + 2 * trunk * state.updates


@functools.lru_cache(maxsize=8)
def _split(model: Model) -> int:
    """Numbers in a sample's activation. Kept, since a trunk is built to find out."""
    return math.prod(split_network.split_shape(model))


def remember(state: State, row: HistoryRow) -> None:
    """Add to the history, in so few digits that a full one fits into a RunHistory; where it is full, every second row of
    its older half goes."""
    if len(state.history) >= _HISTORY:
        older, newer = state.history[: _HISTORY // 2], state.history[_HISTORY // 2 :]
        state.history = older[::2] + newer
    state.history.append((*row[:2], float(f"{row[2]:.6g}"), round(row[3], 2), *row[4:]))


def begin(config: CloudConfig, run: str, weights: Weights) -> State:
    """The state of a new run, from the `weights` of the untrained FL model."""
    return State(settings=settings(config), run=run, weights=as_sent(config, weights))


def as_sent(config: CloudConfig, weights: Weights) -> Weights:
    """The `weights` as devices read them: the cloud goes on from those, since the deltas of updates are made against them."""
    form = config.rounds.model
    return restore(shrink(weights, form, weights), form, weights)


def settings(config: CloudConfig) -> dict[str, Any]:
    """Of `config`, section.key -> value: all that may not change during a run."""
    whole = config.model_dump(mode="json", include={"model", "data", "rounds", "training", "overlays"})
    return {
        f"{section}.{key}": value
        for section, values in whole.items()
        for key, value in values.items()
        if key not in _FREE.get(section, ())
    }
