"""A process that trains devices by split federated learning, one after another.

Knows requests and answers as bytes (testbed/workers/pool.py). Knows no averaging and no other process.

    BEGIN, GlobalModel   what every device starts from, both halves; nothing comes back
    TRAIN, number        one device's round: its Update with both halves; JSON: loss, a DeviceWork's counts
"""

import json
from collections.abc import Callable

import torch

from emo.wire import frame
from emo.wire.messages import GlobalModel
from testbed import node_configs
from testbed.plan import Plan
from testbed.splitfed.halves import Halves
from testbed.workers.pool import Parts
from testbed.workers.shared_memory import SharedData

BEGIN, TRAIN = b"begin", b"train"


def make(plan: Plan, data: SharedData, device: str) -> Callable[[list[bytes]], Parts]:
    """The handler of one process. Raises ModelError."""
    torch.set_num_threads(1)
    halves, dataset = Halves(node_configs.network(plan), device), data.dataset()
    start: GlobalModel | None = None

    def handle(parts: list[bytes]) -> Parts:
        nonlocal start
        kind, content = parts
        if kind == BEGIN:
            message = frame.unpack(frame.KINDS.index(GlobalModel), content)
            assert isinstance(message, GlobalModel)
            start = message
            return ()
        assert start is not None
        number = int(content)
        server = node_configs.edge_id(plan.edge_of(number)) if plan.method == "sfl-edge" else "cloud"
        batches = node_configs.batches(plan, dataset, data.rows(number))
        done = halves.round(start, batches, node_configs.device_id(plan, number), server)
        counts = {"batches": done.batches, "samples": done.samples, "up": done.up, "down": done.down}
        return frame.pack(done.update), json.dumps([done.loss, counts]).encode()

    return handle
