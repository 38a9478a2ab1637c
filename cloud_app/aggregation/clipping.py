"""The norm of an update, and the update made shorter.

An update is what a device changed: its weights less the global model's. Integer buffers (batch norm's counters) are
no part of it.
"""

import math

import numpy as np

from emo.wire.messages import Weights


def norm(like: Weights, weights: Weights | None = None) -> float:
    """L2 norm of `weights` - `like` over all arrays of floats; without `weights` of `like` itself. The same arrays
    give the same bits."""
    total = 0.0
    for name, array in like.items():
        if array.dtype.kind == "f":
            wide = array.astype(np.float64)
            if weights is not None:
                np.subtract(weights[name], wide, out=wide)
            total += float(np.square(wide, out=wide).sum())
    return math.sqrt(total)


def clipped(like: Weights, weights: Weights, norm: float, limit: float) -> Weights:
    """`like` + (`weights` - `like`) x `limit` / `norm`, in the dtypes of `like`: the update made `limit` long. `norm` is
    its norm, above `limit`; integers stay."""
    share = limit / norm
    shortened: dict[str, np.ndarray] = {}
    for name, array in like.items():
        if array.dtype.kind != "f":
            shortened[name] = weights[name]
            continue
        start = array.astype(np.float64)
        shortened[name] = np.asarray(start + (weights[name] - start) * share).astype(array.dtype)
    return shortened
