"""A run once more, from nothing but its configuration and its recorded members: the same bits, if the record is true.

What a device trains in a round follows from the global model alone, so it can be done again, in one thread and without a network;
and with a tap, so that it shows what the edges should hold.
"""

import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from cloud_app.aggregation import exact_mean
from device_app.node import DeviceNode
from emo.config import CloudConfig, DeviceConfig, Tap
from emo.data import registry
from emo.journal import Journal
from emo.models import split_network
from emo.wire.compression import digest
from emo.wire.messages import ActivationBatch, GlobalModel, Update, Weights
from testbed.chaos.invariants import Closed, Violation

Batch = tuple[str, int, int]  # device, batch, version
_LARGEST = 64 << 20  # bytes of one batch


class Replayed(NamedTuple):
    """`models`: round -> the weights that it gives. `batches`: those that were wanted -> crc32 of their activations as
    an edge decodes them."""

    models: Mapping[int, Weights]
    batches: Mapping[Batch, int]


def replay(
    cloud: CloudConfig,
    devices: Mapping[str, DeviceConfig],
    closed: Mapping[int, Closed],
    wanted: Collection[Batch] = (),
    sent: Mapping[int, Sequence[Weights]] | None = None,
) -> Replayed:
    """`closed`: rounds 1 to the last, without a gap. `wanted`: of rounds among them. `sent`: by round, what a hostile
    member may have had counted; that one which gives the recorded model is taken to have been."""
    torch.set_num_threads(1)
    weights: Weights = split_network.weights(split_network.network(cloud.model, cloud.rounds.seed))
    nodes = {name: _node(config) for name, config in devices.items()}
    given, batches = dict[int, Weights](), dict[Batch, int]()
    for number in range(1, len(closed) + 1):
        members = closed[number].members
        rows = {batch for batch in wanted if batch[2] // cloud.training.epochs == number}
        updates = dict[str, Weights]()
        for device in sorted({*members, *(batch[0] for batch in rows)} & nodes.keys()):
            # `fresh`: the intervals hold nothing back.
            model = GlobalModel("again", number, (device,), cloud.training, weights, fresh=True)
            for message in nodes[device].handle(model, 0.0):
                if isinstance(message, ActivationBatch):
                    key = (device, message.batch, message.version)
                    if key in rows:
                        batches[key] = crc(message.activations.array(_LARGEST))
                elif isinstance(message, Update) and device in members:
                    updates[device] = message.weights
        given[number] = weights = _mean(weights, closed[number], updates, (sent or {}).get(number, ()))
    return Replayed(given, batches)


def _mean(start: Weights, closed: Closed, updates: Mapping[str, Weights], others: Sequence[Weights]) -> Weights:
    """What a round gives with the updates of its honest members and, of one that is not among them, one of `others`."""
    strange = closed.members.keys() - updates.keys()
    mean: Weights = {}
    for other in others if strange else [{}]:
        total = exact_mean.init(start)
        for device, samples in sorted(closed.members.items()):
            update = updates.get(device, other)
            exact_mean.check(start, update)
            total.add(update, samples)
        mean = total.result()
        if digest(mean) == closed.digest:
            break
    return mean


def compare(closed: Mapping[int, Closed], again: Replayed, final: Weights | None) -> list[Violation]:
    """`final`: the global model as the cloud has kept it; None where it did not get so far."""
    wrong = []
    for number, recorded in sorted(closed.items()):
        if recorded.digest != digest(again.models[number]):
            wrong.append(Violation("bits", f"round {number} gave another model than its recorded members do"))
    if final is not None and closed and not _same(final, again.models[len(closed)]):
        wrong.append(Violation("bits", "the final model is not what the recorded members give"))
    return wrong


def cached(batches: Mapping[Batch, int], again: Replayed) -> list[Violation]:
    """`batches`: what the edges' caches hold, each with the crc32 of its activations once decoded."""
    wrong = []
    for (device, batch, version), held in sorted(batches.items()):
        computed = again.batches.get((device, batch, version))
        if computed != held:
            why = "was never computed" if computed is None else "is mixed or of another version"
            wrong.append(Violation("cache", f"batch {batch} of {device}, version {version}, {why}"))
    return wrong


def crc(activations: np.ndarray) -> int:
    """Of a decoded batch, float32 (N, C, ...)."""
    return zlib.crc32(np.ascontiguousarray(activations, dtype=np.float32).data)


def _node(config: DeviceConfig) -> DeviceNode:
    codec = config.tap.codec.removesuffix("-delta")  # decodes to the same bits, and needs no base
    plain = config.model_copy(update={"tap": Tap.model_validate({"codec": codec})})
    train = registry.training(config.data, config.model, own=config.partition is None)
    return DeviceNode(plain, train, Journal())


def _same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name]) for name in one
    )
