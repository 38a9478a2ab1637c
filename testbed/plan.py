"""The types that the testbed's parts share: what is simulated (Plan), and what a simulated round has done and cost."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Protocol, get_args

from pydantic import Field

from emo.config import Cache, Controller, Data, Model, Overlay, Positive, Section, Seed, Tap, Training
from emo.wire.messages import Weights

MethodName = Literal["fl-small", "fl-large", "sfl-cloud", "sfl-edge", "emo"]
METHODS: tuple[MethodName, ...] = get_args(MethodName)


class Plan(Section):
    """One run. `model` names the split network whose trunk and head a small device holds: FL-Large and SFL put its
    overlay in the head's place. `samples`: of one device; left out, the dataset is dealt out whole. `edges`: each
    one's share of the devices. `tap`, `controller`, `cache`, `overlay` and `fresh_rounds` are EMO's."""

    method: MethodName
    data: Data = Data()
    model: Model = Model()
    devices: Positive = 100
    per_round: Positive = 20
    rounds: Positive = 60
    samples: Positive | None = None
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 16
    scheme: Literal["iid", "dirichlet", "shards"] = "dirichlet"
    alpha: Annotated[float, Field(gt=0)] = 5.0
    training: Training = Training()
    edges: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.4, 0.6)
    tap: Tap = Tap()
    controller: Controller = Controller()
    cache: Cache = Cache()
    overlay: Overlay = Overlay()
    fresh_rounds: Annotated[int, Field(ge=0)] = 0
    evaluate_every: Positive = 5
    seed: Seed = 0

    def groups(self) -> list[range]:
        """The devices of each edge, in order; together all of them."""
        ends, total = [0], 0.0
        for share in self.edges:
            total += share
            ends.append(round(self.devices * total / sum(self.edges)))
        return [range(start, end) for start, end in itertools.pairwise(ends)]

    def edge_of(self, device: int) -> int:
        return next(edge for edge, group in enumerate(self.groups()) if device in group)


@dataclass(frozen=True)
class DeviceWork:
    """What one device did in a round. Bytes are those of frames and topics on the wire, both chunks and headers.

    `down`, `up`: bytes by kind (the message's class), e.g. up = {"Update": 12345, "ActivationBatch": 678}.
    `batches`: trained on; `samples`: passed through training.
    """

    device: int
    batches: int
    samples: int
    down: dict[str, int] = field(default_factory=dict)
    up: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundWork:
    """`devices`: those sampled, in order of device. `steps`, `overlays`: EMO's overlay steps, and the bytes of the
    overlays it sent, by edge; in sfl-edge the bytes of the server's half from each edge (`overlays`) and to it
    (`overlays_down`). `heads`: bytes of the head to all edges (emo). `attempted`, `sent`: batches offered to the policy, and let through. `loss`: mean."""

    number: int
    devices: tuple[DeviceWork, ...]
    loss: float
    attempted: int = 0
    sent: int = 0
    steps: tuple[int, ...] = ()
    overlays: tuple[int, ...] = ()
    overlays_down: tuple[int, ...] = ()
    heads: int = 0


@dataclass(frozen=True)
class RoundTime:
    """Virtual seconds. `arrivals`: device -> when its update is at the cloud, after the round's start; a device that
    drops out has none. `parts`: where the time of the last device went, adding up to `seconds`: e.g. compute,
    upload, download, server, and "upload queue" for the wait before it. `beside`: of what ran in parallel and held up
    nothing: EMO's overlay training by edge, and its overlays' way to the cloud."""

    seconds: float
    arrivals: dict[int, float]
    parts: dict[str, float]
    beside: dict[str, float] = field(default_factory=dict)


class Method(Protocol):
    """A method under simulation. One seed gives the same bits, whatever the number of workers."""

    def round(self, number: int) -> tuple[RoundWork, RoundTime]:
        """Run round `number`, from 1 on, one after the other. Raises EmoError."""
        ...

    def accuracies(self) -> dict[str, float]:
        """Percent on the test set: `model` is what the method would serve; beside it its parts, by name."""
        ...

    def weights(self) -> dict[str, Weights]:
        """Of the parts that make the served model: trunk, head, overlay-1, ..."""
        ...

    def save(self, folder: Path) -> None:
        """All that `load` needs to go on with the same bits, into the empty `folder`."""
        ...

    def load(self, folder: Path) -> None: ...

    def close(self) -> None:
        """Ends processes and threads; harmless twice."""
        ...
