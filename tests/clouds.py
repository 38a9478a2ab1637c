"""A cloud node of a tiny model, and what devices say to it."""

import numpy as np
from fleet import MODEL

from cloud_app.rounds.node import CloudNode
from cloud_app.rounds.state import begin
from emo.config import CloudConfig
from emo.journal import Journal
from emo.wire.messages import GlobalModel, Status, Update


def cloud(start_s=0, **rounds) -> CloudNode:
    values = {"rounds": 2, "min_devices": 2, "deadline_s": 10, "give_up_s": 100} | rounds
    config = CloudConfig.model_validate(
        {"model": MODEL, "rounds": values, "overlays": {"edges": ["e"], "wait_s": 5, "start_s": start_s}}
    )
    return CloudNode(config, begin(config, "run", {"w": np.zeros(2, np.float32)}), Journal())


def update(device, round=1, run="run", value=1.0, samples=4, **weights):
    arrays = weights or {"w": np.full(2, value, np.float32)}
    return Update(run, device, round, samples, 0.5, arrays)


def opened(node, devices=("a", "b", "c", "d"), now=0.0):
    out = []
    for name in devices:
        out += node.handle(Status(name, "device", online=True, samples=4), now)
    return [m for m in out if isinstance(m, GlobalModel)]
