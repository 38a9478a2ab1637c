"""The covariances of the channels of two sets of activations, which SVCCA and CKA compare.

Datapoints are centred in the precision of the input, multiplied in float32 (twice as fast as float64)
and summed over pieces in float64. An entry's error stays near 1e-7 of its two channels' norms, so
that of the matrix near 1e-7 of the whole variance; for directions weaker than that there is `exact`.
"""

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from emo.errors import ModelError

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]

_ROWS = 1024  # datapoints a piece: it stays in the processor's cache
_SAMPLE = 256  # datapoints, evenly spread, whose mean is taken off all
# Variances below these may have lost digits to underflow: next precision, or no answer at all.
_LEAST = {np.float32: 1e-20, np.float64: float(np.finfo(np.float64).tiny)}


def covariances(a: Floats, b: Floats, *, exact: bool = False) -> tuple[Doubles, Doubles, Doubles] | None:
    """(c, c) of `a` (n, c), (c, d) across, (d, d) of `b` (n, d), float64, not divided by n.

    Below c datapoints they are in n other, rotated coordinates, which no score sees.
    None when nothing can be said: a NaN or an infinity in the input, or activations that are constant
    over the datapoints. Raises ModelError when the two do not have the same n datapoints.
    `exact` multiplies in float64; so does what float32 cannot hold.
    """
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b):
        raise ModelError(f"a comparison needs (n, c) and (n, d) with the same n, found {a.shape}, {b.shape}")
    if a.size == 0 or b.size == 0:
        return None
    with np.errstate(all="ignore"):  # what is not finite is answered below
        a, b = _narrow(a), _narrow(b)
        c = a.shape[1]
        for dtype in (np.float64,) if exact else (np.float32, np.float64):
            joint = _joint(a, b, dtype)
            power = joint.diagonal()
            if np.isfinite(joint).all() and min(power[:c].sum(), power[c:].sum()) > _LEAST[dtype]:
                return joint[:c, :c], joint[:c, c:], joint[c:, c:]
    return None


def _joint(a: Floats, b: Floats, dtype: DTypeLike) -> Doubles:
    """Covariance of (a | b), (c + d) x (c + d), from datapoints relative to a sample's mean."""
    n, c = a.shape
    width = c + b.shape[1]
    total, drift = np.zeros((width, width)), np.zeros(width)
    piece = np.empty((min(_ROWS, n), width), dtype)
    ones = np.ones(len(piece), dtype)
    parts = [(torch.from_numpy(piece[:, :c]), *_centred(a)), (torch.from_numpy(piece[:, c:]), *_centred(b))]
    for start in range(0, n, _ROWS):
        rows = piece[: n - start]
        for out, x, centre in parts:  # torch's subtraction takes a third of numpy's time here
            torch.sub(x[start : start + _ROWS], centre, out=out[: len(rows)])
        total += rows.T @ rows  # the same array twice: numpy computes one triangle only
        drift += ones[: len(rows)] @ rows
    total -= np.outer(drift, drift) / n
    return total


def _centred(x: Floats) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, c) and about its mean (c,). Taken relative to the first datapoint, so that a constant channel
    comes out as exactly zero and a large mean costs no digits; what it is off is corrected in the end."""
    sample = x[:: -(-len(x) // _SAMPLE)] - x[0]
    centre = x[0] + sample.mean(axis=0)
    return torch.from_numpy(np.require(x, requirements=("C", "W"))), torch.from_numpy(centre)


def _narrow(x: Floats) -> Floats:
    """Fewer datapoints than channels: the same datapoints in n coordinates, rotated."""
    n, c = x.shape
    if n >= c:
        return x
    moved = x.astype(np.float64) - x[0]
    gram: Doubles = moved @ moved.T
    if not np.isfinite(gram).all():
        return gram
    values, vectors = torch.linalg.eigh(torch.from_numpy(gram))
    narrowed: Doubles = (vectors * values.clamp(min=0.0).sqrt()).numpy()
    return narrowed
