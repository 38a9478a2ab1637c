"""Tests whether this machine can be a device: one training step, and one activation batch to frames and back, of noise.

On some processors torch dies of an instruction that they lack, so `emo selftest` runs this in a process of its own.

    python -m device_app.selftest [FILE]    a device's configuration; prints one JSON object
"""

import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from device_app.node import DeviceNode
from emo.config import DeviceConfig, Training
from emo.config_file import load
from emo.data.dataset import Dataset, constant
from emo.errors import EmoError, FrameError, ModelError
from emo.journal import Journal
from emo.models import split_network
from emo.wire import frame, topics
from emo.wire.messages import ActivationBatch, CannotTrain, GlobalModel, Message, Update
from emo.wire.reassembly import Reassembler

_RUN = "selftest"


def check(config: DeviceConfig) -> dict[str, Any]:
    """A round of one step over one batch of `config.batch_size`, through the node that a fleet runs.

    Returns `torch`, `machine`, `model`, `loss`, `codec`, `frames`, `bytes`, `raw_bytes` (of the activations as float32)
    and `seconds`. Raises EmoError: the model does not fit or does not learn (weights not finite, or unchanged), or the
    batch does not come back as it was sent.
    """
    torch.set_num_threads(config.threads)
    config = config.model_copy(update={"edge": config.edge or "edge", "partition": None})
    config = config.model_copy(update={"tap": config.tap.model_copy(update={"enabled": True})})
    start = time.monotonic()
    before = split_network.weights(split_network.network(config.model, seed=0))
    node = DeviceNode(config, _noise(config), Journal())
    model = GlobalModel(_RUN, 0, (config.id,), Training(lr=0.01), before)
    sent = list(node.handle(model, now=time.monotonic()))
    node.close()
    for message in sent:
        if isinstance(message, CannotTrain):
            raise ModelError(f"{config.model.name}: {message.reason}")
    batch = next(message for message in sent if isinstance(message, ActivationBatch))
    update = next(message for message in sent if isinstance(message, Update))
    if not all(np.isfinite(array).all() for array in update.weights.values()):
        raise ModelError(f"{config.model.name}: after one step its weights are not finite on this machine")
    if all(np.array_equal(array, update.weights[name]) for name, array in before.items()):
        raise ModelError(f"{config.model.name}: one step changes no weight on this machine")
    frames = list(frame.split(batch, bytes(8), config.lan.chunk_kib << 10))
    _same(batch, _back(frames))
    return {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "model": config.model.name,
        "loss": update.loss,
        "codec": config.tap.codec,
        "frames": len(frames),
        "bytes": sum(map(len, frames)),
        "raw_bytes": 4 * config.batch_size * int(np.prod(split_network.split_shape(config.model))),
        "seconds": round(time.monotonic() - start, 3),
    }


def _noise(config: DeviceConfig) -> Dataset:
    """One batch: float32 (batch_size, *model.input), every class in turn."""
    shape, count = config.model.input, config.batch_size
    images = np.random.default_rng(0).standard_normal((count, *shape), np.float32)
    classes = tuple(str(number) for number in range(config.model.classes))
    scale = (constant(*([value] * shape[0])) for value in (0.0, 1.0))
    return Dataset(images, np.arange(count) % config.model.classes, classes, *scale)


def _back(frames: list[bytes]) -> Message:
    """The message that an edge would read from `frames`. Raises FrameError."""
    parts = Reassembler(1 << 30, Journal())
    for data in frames:
        chunk = frame.parse(data)
        payload = parts.add(_RUN, chunk, topics.ROUTES[ActivationBatch].limit)
        if payload is not None:
            return frame.unpack(chunk.kind, payload)
    raise FrameError(f"{len(frames)} frames make no message on this machine")


def _same(sent: ActivationBatch, back: Message) -> None:
    limit = topics.ROUTES[ActivationBatch].limit
    if (
        not isinstance(back, ActivationBatch)
        or not np.array_equal(sent.activations.array(limit), back.activations.array(limit))
        or not np.array_equal(sent.labels, back.labels)
        or (sent.batch, sent.version) != (back.batch, back.version)
    ):
        raise FrameError("an activation batch does not come back from its frames as it was sent")


def main(arguments: list[str]) -> int:
    """Print a JSON object with `ok`, and `error`, a sentence, if it is false. Returns 0 or 1."""
    try:
        config = load(DeviceConfig, Path(arguments[0])) if arguments else DeviceConfig(id=_RUN)
        result = {"ok": True, **check(config)}
    except EmoError as error:
        result = {"ok": False, "error": str(error)}
    sys.stdout.write(json.dumps(result) + "\n")
    return int(not result["ok"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
