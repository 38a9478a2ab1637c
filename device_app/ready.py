"""What a device reads and builds before it connects; `emo doctor` tries it."""

import torch

from device_app.node import DeviceNode
from emo.config import DeviceConfig
from emo.data import registry
from emo.errors import ModelError
from emo.journal import Journal
from emo.models import split_network
from emo.ops import trial


def ready(config: DeviceConfig, journal: Journal) -> DeviceNode:
    """The device's node, with its data. Raises EmoError on what does not fit."""
    train = registry.training(config.data, config.model, own=config.partition is None)
    return DeviceNode(config, train, journal)


def described(config: DeviceConfig) -> str:
    """What was built, in words. Raises as `ready`, and ModelError when it cannot train."""
    torch.set_num_threads(config.threads)
    node = ready(config, Journal())
    node.prepare()
    if node.trouble.why:
        raise ModelError(node.trouble.why)
    samples = node.hello(online=False).samples
    return f"{config.model.name} takes its {samples:,} samples; split {list(split_network.split_shape(config.model))}"


if __name__ == "__main__":
    trial.main(DeviceConfig, described)
