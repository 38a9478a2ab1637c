"""What a worker process does: rounds of one device after another, and the edges that live in it.

Any worker may run any device in any round: what a device keeps between rounds comes with the request and goes back with the answer.
"""

import math
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
from testbed.fleet import messages
from testbed.fleet.edge import Edge
from testbed.fleet.gpu_devices import GpuDevices
from testbed.plan import Plan
from testbed.workers import packets
from testbed.workers.messages import Request
from testbed.workers.packets import Packet, Sender
from testbed.workers.shared_memory import SharedData


class Worker:
    """Handles the requests of messages.py, in one process of a Pool. `folder`: of the edges. `device`: torch's, of devices
    that train together."""

    def __init__(self, plan: Plan, data: SharedData, folder: Path, device: str = "cpu") -> None:
        """Raises ModelError, DataError."""
        torch.set_num_threads(1)
        self._plan, self._shared, self._folder = plan, data, folder
        self._limits = threadpool_limits(1, "blas")  # numpy would take every core to compare activations
        self._dataset, self._net = data.dataset(), node_configs.network(plan)
        self._model: GlobalModel | None = None
        self._edges: dict[int, Edge] = {}
        self._torch_device = device
        self._together: GpuDevices | None = None  # made where it is asked for: in one worker
        self._journal = Journal()

    def __call__(self, request: Request[Any]) -> object:
        match request:
            case messages.BeginRound():
                (model,) = packets.decode(request.model)
                assert isinstance(model, GlobalModel)
                self._model = model
            case messages.TrainDevice():
                return self._train(request)
            case messages.TrainTogether():
                assert self._model is not None
                if self._together is None:
                    self._together = GpuDevices(self._plan, self._shared, self._torch_device)
                return self._together.round(self._model, request.devices)
            case messages.OpenEdge():
                if before := self._edges.pop(request.edge, None):
                    before.close()
                folder = self._folder / node_configs.edge_id(request.edge)
                self._edges[request.edge] = Edge(self._plan, request.edge, folder, request.slot)
            case messages.TrainEdge():
                return self._edges[request.edge].round(request)
            case messages.FinishEdge():
                return self._edges[request.edge].finish(packets.decode(request.told))
            case messages.ReadOverlay():
                return safetensors.numpy.save(dict(self._edges[request.edge].overlay()))
        return None

    def _train(self, request: messages.TrainDevice) -> messages.Trained:
        assert self._model is not None
        batches = node_configs.batches(self._plan, self._dataset, self._shared.rows(request.device))
        config = node_configs.device(self._plan, request.device)
        node = DeviceNode(config, self._dataset, self._journal, self._net, batches)
        try:
            if request.state:
                node.resume(request.state)
            for message in packets.decode(request.intervals):
                list(node.handle(message, 0.0))
            return self._trained(node, self._model)
        finally:
            node.close()

    def _trained(self, node: DeviceNode, model: GlobalModel) -> messages.Trained:
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
                return messages.Trained(
                    loss, samples, node.state(), messages.Offered(waves, report), sender.encode(message)
                )
        raise WireError(f"round {model.round} has not asked this device, or it did not answer")
