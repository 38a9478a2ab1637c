"""Checks what devices send: whether a batch belongs to this edge and this run, and what is in it."""

import math
from collections.abc import Sequence

import numpy as np

from emo.config import MAX_EPOCHS, EdgeConfig
from emo.errors import WireError
from emo.wire import codec
from emo.wire.messages import ActivationBatch

_LARGE = 1e15  # of their squares float32 can still add up a few million


def labels(batch: ActivationBatch, config: EdgeConfig, run: str, rounds: int) -> np.ndarray:
    """int64 (N,), once it is clear that the batch belongs to `run`, of so many rounds. Raises WireError."""
    where, most = _where(batch), config.cache.batch_samples
    if batch.device not in config.devices:
        raise WireError(f"{where}: this edge's devices are {', '.join(config.devices[:5])} ...")
    if batch.run != run:
        raise WireError(f"{where}: of run {batch.run}, the cloud's is {run or 'not known yet'}")
    if batch.version >= (rounds + 1) * MAX_EPOCHS:
        raise WireError(f"{where}: version {batch.version} cannot be, in {rounds} rounds")
    if not 1 <= len(batch.labels) <= most:
        raise WireError(f"{where}: {len(batch.labels)} samples; 1 to {most} are taken (cache.batch_samples)")
    if batch.labels.min() < 0 or batch.labels.max() >= config.model.classes:
        raise WireError(f"{where}: labels must be from 0 to {config.model.classes - 1}")
    return batch.labels.astype(np.int64)


def activations(batch: ActivationBatch, split: Sequence[int], cached: np.ndarray | None) -> tuple[np.ndarray, bytes]:
    """Float32 (N, *split), and as a full frame; `cached` is what a delta is made against. Raises BaseError where that is another,
    CodecError and WireError on what is no batch of this model."""
    where, shape = _where(batch), (len(batch.labels), *split)
    decoded, encoded = codec.whole(batch.activations.data(), 4 * math.prod(shape), cached)
    if decoded.shape != shape:
        raise WireError(
            f"{where}: activations {list(decoded.shape)}, expected {list(shape)}; "
            "do device and edge have the same `model`?"
        )
    if not np.isfinite(decoded).all():
        raise WireError(f"{where}: activations hold NaN or infinity")
    if np.abs(decoded).max() >= _LARGE:
        raise WireError(f"{where}: activations of {_LARGE:g} and more are too large to compute with")
    return decoded, encoded


def _where(batch: ActivationBatch) -> str:
    return f"batch {batch.batch} of {batch.device}"
