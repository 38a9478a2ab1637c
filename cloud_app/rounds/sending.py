"""The global model as devices are sent it, and its head as edges are.

Knows the message and the form of its weights. Knows no phase.
"""

from emo.config import CloudConfig
from emo.wire.compression import restore, shrink
from emo.wire.messages import GlobalHead, GlobalModel, Weights


def global_model(
    config: CloudConfig, run: str, number: int, devices: tuple[str, ...], weights: Weights
) -> GlobalModel:
    """Of round `number`, which `devices` are to train; what is retained after the last round asks nobody."""
    form = config.rounds.model
    fresh = number > config.rounds.rounds - config.overlays.fresh_rounds
    return GlobalModel(run, number, devices, config.training, shrink(weights, form, weights), form, fresh)


def global_head(config: CloudConfig, run: str, number: int, weights: Weights) -> GlobalHead:
    """Of the model that round `number` starts from."""
    form = config.rounds.model
    head = {name.removeprefix("head."): array for name, array in weights.items() if name.startswith("head.")}
    return GlobalHead(run, number, shrink(head, form, head), form)


def as_sent(config: CloudConfig, weights: Weights) -> Weights:
    """What devices read: the cloud goes on from that, and their deltas are made against it."""
    form = config.rounds.model
    return restore(shrink(weights, form, weights), form, weights)
