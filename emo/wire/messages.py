"""The messages between nodes, as frozen dataclasses; each field is checked when a message is made.

`run` names one training run, so that retained messages of an earlier one are recognised.
"""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Literal

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from emo.config import Form, Id, Training, Whole
from emo.wire.codec import Packed

Count = Annotated[int, Field(ge=0, lt=2**53)]
Round = Annotated[int, Field(ge=0, lt=2**31)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=500)]
Facts = Annotated[
    dict[Annotated[str, Field(max_length=32)], Annotated[str, Field(max_length=1500)]], Field(max_length=16)
]
Weights = Mapping[str, np.ndarray]
Name = Annotated[str, Field(max_length=64)]
Role = Literal["device", "edge", "cloud", "observer"]
OrNone = Id | Annotated[str, Field(max_length=0)]
_Value = bool | Annotated[int, Field(gt=-(2**53), lt=2**53)] | Finite | Text | None
Told = Annotated[
    dict[
        Name,
        _Value
        | Annotated[list[_Value], Field(max_length=2048)]
        | Annotated[dict[Name, _Value], Field(max_length=2048)],
    ],
    Field(max_length=32),
]
# Of a closed round: number, accuracy (None: not measured), loss, seconds, updates, devices asked, left out, bytes that split
# learning would have sent so far.
HistoryRow = tuple[Round, Finite | None, Finite, Finite, Count, Count, Count, Count]

_CHECKED = ConfigDict(arbitrary_types_allowed=True, extra="forbid")


@dataclass(frozen=True, config=_CHECKED)
class Status:
    """Any node -> cloud, observers: it is here, or (as its will) gone. `samples`: a device's training samples. `facts`: what all
    nodes must have alike (runtime/agreement.py). `trouble`: why it cannot train at all; empty if it can."""

    node: Id
    role: Role
    online: bool
    samples: Count = 0
    facts: Facts = field(default_factory=dict)
    trouble: Text = ""


@dataclass(frozen=True, config=_CHECKED)
class GlobalModel:
    """Cloud -> devices: the weights that round `round` starts from, which devices train, and how.

    It is retained, for devices that join later, so `form`, of the weights (compression.py), is one that needs no base.
    `fresh`: send the edges every batch of this round, whatever their intervals say.
    """

    run: Id
    round: Round
    devices: tuple[Id, ...]
    training: Training
    weights: Weights
    form: Whole = "fp32"
    fresh: bool = False


@dataclass(frozen=True, config=_CHECKED)
class Update:
    """Device -> cloud: weights after local training, the samples behind them, mean training loss.

    `form`: of the weights (compression.py); the base of a delta is the GlobalModel of this round.
    """

    run: Id
    device: Id
    round: Round
    samples: Annotated[int, Field(ge=1, lt=2**24)]
    loss: Finite | None
    weights: Weights
    form: Form = "fp32"


@dataclass(frozen=True, config=_CHECKED)
class Refused:
    """Cloud -> device: why its update was not averaged."""

    run: Id
    device: Id
    round: Round
    reason: Text


@dataclass(frozen=True, config=_CHECKED)
class RunState:
    """Cloud -> edges, observers: which run, and how far it is. In `finishing` an edge ends its training and sends its overlay."""

    run: Id
    round: Round
    rounds: Round
    phase: Literal["training", "finishing", "done"]


@dataclass(frozen=True, config=_CHECKED)
class GlobalHead:
    """Cloud -> edges: the head of the model that round `round` starts from, by which an edge judges labels.

    Retained, so `form` is one that needs no base. Edges do not get the trunk: with it activations are easier to turn back
    into images.
    """

    run: Id
    round: Round
    weights: Weights
    form: Whole = "fp32"


@dataclass(frozen=True, config=_CHECKED)
class OverlayWeights:
    """Edge -> cloud: a trained overlay, with the batches that its devices offered to the policy (`attempted`) and that this let
    through (`sent`)."""

    run: Id
    edge: Id
    steps: Count
    attempted: Count
    sent: Count
    weights: Weights


@dataclass(frozen=True, config=_CHECKED)
class ActivationBatch:
    """Device -> edge: the split layer's output (N, C, ...) and labels (N,) int32 of one fixed batch.

    `version` grows with every pass over the batch, so that a receiver can tell new from doubled.
    """

    run: Id
    edge: Id
    device: Id
    batch: Round
    version: Count
    activations: Packed
    labels: np.ndarray


@dataclass(frozen=True, config=_CHECKED)
class TapReport:
    """Device -> edge, once a round: how many batches it has offered to the policy in this run, how many were let through."""

    run: Id
    edge: Id
    device: Id
    round: Round
    attempted: Count
    sent: Count


@dataclass(frozen=True, config=_CHECKED)
class Interval:
    """Edge -> device: the interval that follows from `version` of `batch` (Algorithm 1)."""

    run: Id
    edge: Id
    device: Id
    batch: Round
    version: Count
    interval: Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=_CHECKED)
class CannotTrain:
    """Device or edge -> cloud: why its training failed in round `round`. It tries again when it is asked again; the round does
    not wait for it."""

    run: Id
    node: Id
    round: Round
    reason: Text


@dataclass(frozen=True, config=_CHECKED)
class Unfit:
    """Cloud -> device or edge: why it takes no part in the run."""

    member: Id
    reason: Text


@dataclass(frozen=True, config=_CHECKED)
class Report:
    """Any node -> observers, at most one in five seconds: how it does. Nothing else depends on it.

    `time`: Unix, by its own clock. `edge`: a device's. `doing`, `trouble`: for people; `trouble` is empty if there is none.
    `figures`: counters and gauges as metrics.json names them, as many as fit, in turn. `intervals`: of a device, a sign for
    each batch, or for as many batches in a row that there are 64 signs at most: its mean interval in attempts as a digit
    of base 36, `.` where the edge has not answered.
    """

    node: Id
    role: Role
    run: OrNone
    time: Finite
    edge: OrNone = ""
    doing: Name = ""
    trouble: Annotated[str, Field(max_length=200)] = ""
    figures: Annotated[dict[Name, Finite], Field(max_length=64)] = field(default_factory=dict)
    intervals: Annotated[str, Field(pattern=r"^[0-9a-z.]{0,64}$")] = ""


@dataclass(frozen=True, config=_CHECKED)
class Event:
    """Any node -> observers: something happened, as in its events.jsonl; or, `name` "problem", was logged as a warning.

    `number`: of the events of a process, so that a doubled one is told, and one that is missing. `time`: Unix, by its own clock.
    """

    node: Id
    role: Role
    number: Count
    time: Finite
    name: Name
    fields: Told = field(default_factory=dict)


@dataclass(frozen=True, config=_CHECKED)
class RunHistory:
    """Cloud -> observers, retained: the rounds of a run so far, for who comes late. `rows`: oldest first; of a long run older
    ones are left out here and there. `result`, once there is one: accuracies (fl, bagged, boosted.EDGE, served), version
    and so on, by name."""

    run: Id
    rounds: Round
    rows: Annotated[tuple[HistoryRow, ...], Field(max_length=1024)]
    result: Annotated[dict[Name, Finite], Field(max_length=64)] = field(default_factory=dict)


Message = (
    Status
    | GlobalModel
    | Update
    | Refused
    | RunState
    | OverlayWeights
    | ActivationBatch
    | TapReport
    | Interval
    | CannotTrain
    | Unfit
    | GlobalHead
    | Report
    | Event
    | RunHistory
)
