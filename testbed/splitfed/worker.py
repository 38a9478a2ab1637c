"""A process that trains devices by split federated learning, one after another."""

from collections.abc import Callable

import torch
from pydantic.dataclasses import dataclass

from emo.wire.messages import GlobalModel, Update
from testbed import node_configs
from testbed.plan import DeviceWork, Plan
from testbed.splitfed.halves import Halves
from testbed.workers.messages import CHECKED, Message, Request
from testbed.workers.shared_memory import SharedData


@dataclass(frozen=True, config=CHECKED)
class Trained(Message):
    """`update`: with both halves. `loss`: mean, perhaps not finite."""

    update: Update
    loss: float
    work: DeviceWork


@dataclass(frozen=True, config=CHECKED)
class Begin(Request[None]):
    """`model`: what every device starts from, both halves."""

    model: GlobalModel


@dataclass(frozen=True, config=CHECKED)
class Train(Request[Trained]):
    device: int


def make(plan: Plan, data: SharedData, torch_device: str) -> Callable[[Begin | Train], Trained | None]:
    """The handler of one process. Raises ModelError."""
    torch.set_num_threads(1)
    halves, dataset = Halves(node_configs.network(plan), torch_device), data.dataset()
    start: GlobalModel | None = None

    def handle(request: Begin | Train) -> Trained | None:
        nonlocal start
        if isinstance(request, Begin):
            start = request.model
            return None
        assert start is not None
        number = request.device
        server = node_configs.edge_id(plan.edge_of(number)) if plan.method == "sfl-edge" else "cloud"
        batches = node_configs.batches(plan, dataset, data.rows(number))
        done = halves.round(start, batches, node_configs.device_id(plan, number), server)
        work = DeviceWork(number, done.batches, done.samples, done.down, done.up)
        return Trained(done.update, done.loss, work)

    return handle
