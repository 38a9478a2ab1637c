"""What a simulated fleet asks its worker processes, and what they answer. Packets are those that a broker would carry."""

from pathlib import Path

from pydantic.dataclasses import dataclass

from emo.wire.messages import OverlayWeights
from testbed.workers.messages import CHECKED, Message, Request
from testbed.workers.packets import Packet


@dataclass(frozen=True, config=CHECKED)
class Offered(Message):
    """What one device sent to its edge in a round. `waves`: an ActivationBatch's packets for each batch that it
    trained on, in order, none where the policy held it back. `report`: a TapReport's."""

    waves: list[list[Packet]]
    report: list[Packet]


@dataclass(frozen=True, config=CHECKED)
class Trained(Message):
    """One device's round. `loss`: mean, perhaps not finite; `samples`: passed through training; `state`: what
    DeviceNode has of it afterwards; `update`: an Update's packets."""

    loss: float
    samples: int
    state: bytes
    offered: Offered
    update: list[Packet]


@dataclass(frozen=True, config=CHECKED)
class EdgeTrained(Message):
    """`steps`: of the overlay, in this round. `intervals`: those that each device is answered with."""

    steps: int
    intervals: dict[str, list[Packet]]


@dataclass(frozen=True, config=CHECKED)
class BeginRound(Request[None]):
    model: list[Packet]


@dataclass(frozen=True, config=CHECKED)
class TrainDevice(Request[Trained]):
    """`state`: what the device has kept, empty where it was never asked; `intervals`: those that wait for it."""

    device: int
    state: bytes
    intervals: list[Packet]


@dataclass(frozen=True, config=CHECKED)
class TrainTogether(Request[list[Trained]]):
    devices: list[TrainDevice]


@dataclass(frozen=True, config=CHECKED)
class OpenEdge(Request[None]):
    """`slot`: where the edge goes on from; None: a new one."""

    edge: int
    slot: Path | None


@dataclass(frozen=True, config=CHECKED)
class TrainEdge(Request[EdgeTrained]):
    """`told`: what the cloud says; `offered`: by each device; `slot`: where to keep the edge afterwards."""

    edge: int
    round: int
    told: list[Packet]
    offered: dict[str, Offered]
    slot: Path


@dataclass(frozen=True, config=CHECKED)
class FinishEdge(Request[OverlayWeights]):
    """`told`: by the cloud, that the run has ended."""

    edge: int
    told: list[Packet]


@dataclass(frozen=True, config=CHECKED)
class ReadOverlay(Request[bytes]):
    """Its weights as they are now, as safetensors."""

    edge: int
