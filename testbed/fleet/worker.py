"""What a worker process does: rounds of one device after another, and the edges that live in it.

Knows plans, nodes and packets. Knows no cloud and no order of devices: any worker may run any device in any round.
What a device keeps between rounds comes with its job and goes back with the answer.

    BEGIN    GlobalModel's packets                               -> nothing
    DEVICE   number, state, packets of intervals                 -> Trained.pack
    TOGETHER [number, parts] of each, their DEVICE's parts       -> sizes, each one's Trained.pack
    OPEN     edge, slot (empty: a new edge)                      -> nothing
    EDGE     edge, slot to keep it in, round, devices, packets   -> steps, packets of intervals
    FINISH   edge, packets of what the cloud says                            -> OverlayWeights' packets
    OVERLAY  edge                                                -> its weights as safetensors

The first part says which; the second, JSON, what is not bytes.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import safetensors.numpy
import torch
from threadpoolctl import threadpool_limits

from device_app.node import DeviceNode
from emo.errors import ModelError, WireError
from emo.journal import Journal
from emo.wire.messages import ActivationBatch, CannotTrain, GlobalModel, TapReport, Update
from testbed import node_configs
from testbed.fleet.edge import Edge, Offered
from testbed.fleet.gpu_devices import Sampled, Together
from testbed.plan import Plan
from testbed.workers import packets
from testbed.workers.packets import Packet, Sender
from testbed.workers.pool import Parts
from testbed.workers.shared_memory import SharedData

BEGIN, DEVICE, OPEN, EDGE, FINISH, OVERLAY = b"begin", b"device", b"open", b"edge", b"finish", b"overlay"
TOGETHER = b"together"


@dataclass(frozen=True)
class Trained:
    """One device's round. `loss`: mean, perhaps not finite; `samples`: passed through training; `state`: what
    DeviceNode has of it afterwards; `update`: an Update's packets."""

    loss: float
    samples: int
    state: bytes
    offered: Offered
    update: Sequence[Packet]

    def pack(self) -> list[bytes]:
        said = json.dumps([self.loss, self.samples]).encode()
        groups = [*self.offered.groups(), self.update]
        return [said, self.state, *packets.flat(groups)]

    @classmethod
    def unpack(cls, parts: Parts) -> "Trained":
        loss, samples = json.loads(parts[0])
        *waves, report, update = packets.groups(parts[2:])
        return cls(loss, samples, parts[1], Offered(waves, report), update)


def make(plan: Plan, data: SharedData, folder: Path, device: str = "cpu") -> Callable[[list[bytes]], Parts]:
    """Of one process, for Pool. `folder`: of the edges. `device`: torch's, of devices that train together."""
    torch.set_num_threads(1)
    return Worker(plan, data, folder, device)


class Worker:
    def __init__(self, plan: Plan, data: SharedData, folder: Path, device: str = "cpu") -> None:
        """Raises ModelError, DataError."""
        self._plan, self._shared, self._folder = plan, data, folder
        self._limits = threadpool_limits(1, "blas")  # numpy would take every core to compare activations
        self._dataset, self._net = data.dataset(), node_configs.network(plan)
        self._model: GlobalModel | None = None
        self._edges: dict[int, Edge] = {}
        self._torch_device = device
        self._together: Together | None = None  # made where it is asked for: in one worker
        self._journal = Journal()
        self._does: dict[bytes, Callable[[Any, list[bytes]], Parts]] = {
            BEGIN: self._begin,
            DEVICE: self._device,
            TOGETHER: self._all,
            OPEN: self._open,
            EDGE: self._edge,
            FINISH: self._finish,
            OVERLAY: self._overlay,
        }

    def __call__(self, parts: list[bytes]) -> Parts:
        kind, said, *rest = parts
        return self._does[kind](json.loads(said), rest)

    def _begin(self, _said: None, parts: list[bytes]) -> Parts:
        (model,) = packets.decode(packets.groups(parts)[0])
        assert isinstance(model, GlobalModel)
        self._model = model
        return ()

    def _all(self, said: list[tuple[int, int]], parts: list[bytes]) -> Parts:
        assert self._model is not None
        if self._together is None:
            self._together = Together(self._plan, self._shared, self._torch_device)
        rest, sampled = iter(parts), list[Sampled]()
        for number, count in said:
            state, *intervals = islice(rest, count)
            sampled.append(Sampled(number, state, packets.groups(intervals)[0]))
        packed = [Trained(*sent).pack() for sent in self._together.round(self._model, sampled)]
        sizes = json.dumps([len(each) for each in packed]).encode()
        return [sizes, *(part for each in packed for part in each)]

    def _device(self, number: int, parts: list[bytes]) -> Parts:
        assert self._model is not None
        state, *intervals = parts
        batches = node_configs.batches(self._plan, self._dataset, self._shared.rows(number))
        node = DeviceNode(
            node_configs.device(self._plan, number), self._dataset, self._journal, self._net, batches
        )
        try:
            if state:
                node.resume(state)
            for message in packets.decode(packets.groups(intervals)[0]):
                list(node.handle(message, 0.0))
            return self._trained(node, self._model).pack()
        finally:
            node.close()

    def _trained(self, node: DeviceNode, model: GlobalModel) -> Trained:
        sender = Sender(model.round)
        waves: list[list[Packet]] = []
        report: list[Packet] = []
        for message in node.handle(model, 0.0):
            if message is None:
                waves.append([])
            elif isinstance(message, ActivationBatch):
                waves.append(sender.encode(message))
            elif isinstance(message, TapReport):
                report = sender.encode(message)
            elif isinstance(message, CannotTrain):
                raise ModelError(f"{message.node} cannot train: {message.reason}")
            elif isinstance(message, Update):
                loss = math.nan if message.loss is None else message.loss
                samples = message.samples * model.training.epochs
                return Trained(loss, samples, node.state(), Offered(waves, report), sender.encode(message))
        raise WireError(f"round {model.round} has not asked this device, or it did not answer")

    def _open(self, said: tuple[int, str], _parts: list[bytes]) -> Parts:
        number, slot = said
        folder = self._folder / node_configs.edge_id(number)
        before = self._edges.pop(number, None)
        if before is not None:
            before.close()
        self._edges[number] = Edge(self._plan, number, folder, Path(slot) if slot else None)
        return ()

    def _edge(self, said: tuple[int, str, int, list[tuple[str, int]]], parts: list[bytes]) -> Parts:
        number, slot, round_number, devices = said
        edge, groups = self._edges[number], iter(packets.groups(parts))
        edge.begin(packets.decode(next(groups)))
        offered = {
            device: Offered([next(groups) for _ in range(waves)], next(groups)) for device, waves in devices
        }
        answers = edge.round(round_number, offered)
        edge.keep(Path(slot))
        return [str(edge.steps).encode(), *packets.flat(answers.values())]

    def _finish(self, number: int, parts: list[bytes]) -> Parts:
        return packets.flat([self._edges[number].finish(packets.decode(packets.groups(parts)[0]))])

    def _overlay(self, number: int, _parts: list[bytes]) -> Parts:
        weights = self._edges[number].overlay()
        return [safetensors.numpy.save(dict(weights))]
