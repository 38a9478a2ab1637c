"""SVCCA: how alike two versions of the same activations are (Raghu et al. 2017, NeurIPS).

Knows two arrays and a share of variance. Knows no device, no batch, no cache and no interval.

What a score means. 1 is "the same, up to an affine map of the channels": SVCCA cannot see rotation,
permutation or scale of channels, so 1 does not mean that an overlay would see no change. Unrelated
activations do not score 0 but about 0.87 * sqrt(c / n) for n datapoints and c channels: 0.05 at
4096 x 16, 0.44 at 256 x 64, and exactly 1 when n <= c. Fold space into datapoints first (`fold`).
Two unrelated networks on the same images still score about 0.55; 1 % of weight drift leaves 0.998,
10 % 0.95, 30 % 0.81.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from emo.errors import ModelError

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]

_ROWS = 1024  # rows widened to float64 at a time: the piece stays in the processor's cache
_RANK = 1e-12  # directions below this share of all variance are rounding, not signal


def fold(activations: Floats) -> Floats:
    """(N, C, *space) -> (N * prod(space), C), each place a datapoint; (N, F) stays as it is.

    Raises ModelError for fewer than two axes.
    """
    if activations.ndim < 2:
        raise ModelError(f"activations need the axes (N, C, ...), found the shape {activations.shape}")
    return np.moveaxis(activations, 1, -1).reshape(-1, activations.shape[1])


def svcca(a: Floats, b: Floats, variance: float = 0.99) -> float:
    """Mean canonical correlation of `a` (n, c) and `b` (n, d), float32 or float64; in [0, 1].

    Each array is centred and reduced to the fewest singular directions that hold `variance` of its
    summed squared singular values; the correlations counted are the smaller of the two ranks.
    NaN when nothing can be said: a NaN or an infinity in the input, or activations that are constant
    over the datapoints. Raises ModelError when the two do not have the same n datapoints.

    Works on covariances of c x c in float64. The weakest direction that is kept holds at least
    (1 - variance) / c of the variance, so squaring the condition number costs no figure that counts.
    """
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b):
        raise ModelError(f"SVCCA needs (n, c) and (n, d) with the same n, found {a.shape} and {b.shape}")
    if a.size == 0 or b.size == 0:
        return float("nan")
    with np.errstate(all="ignore"):  # what is not finite is answered below
        a, b = _narrow(a), _narrow(b)
        joint = _covariance(a, b)
    if not np.isfinite(joint).all():
        return float("nan")
    c = a.shape[1]
    white_a, white_b = _whitening(joint[:c, :c], variance), _whitening(joint[c:, c:], variance)
    if white_a is None or white_b is None:
        return float("nan")
    correlations = torch.linalg.svdvals(torch.from_numpy(white_a.T @ joint[:c, c:] @ white_b))
    return float(correlations.clamp(max=1.0).mean())


def _narrow(x: Floats) -> Floats:
    """Fewer datapoints than channels: the same datapoints in n coordinates; SVCCA does not see rotation."""
    n, c = x.shape
    if n >= c:
        return x
    moved = x.astype(np.float64) - x[0]
    gram: Doubles = moved @ moved.T
    if not np.isfinite(gram).all():
        return gram
    values, vectors = _eigh(gram)
    return vectors * np.sqrt(values)


def _covariance(a: Floats, b: Floats) -> Doubles:
    """Covariance of (a | b), (c + d) x (c + d), not divided by n.

    Datapoints are taken relative to the first one, so that a constant channel comes out as exactly
    zero and a large mean costs no digits; the mean of what is left is taken off at the end.
    """
    n, c = a.shape
    total = np.zeros((c + b.shape[1],) * 2)
    mean = np.zeros(len(total))
    piece = np.empty((min(_ROWS, n), len(total)))
    for start in range(0, n, _ROWS):
        rows = piece[: n - start]
        np.subtract(a[start : start + _ROWS], a[0], out=rows[:, :c], dtype=np.float64)
        np.subtract(b[start : start + _ROWS], b[0], out=rows[:, c:], dtype=np.float64)
        mean += rows.sum(axis=0) / n
        total += rows.T @ rows
    total -= n * np.outer(mean, mean)
    return total


def _whitening(covariance: Doubles, variance: float) -> Doubles | None:
    """(c, k): the kept directions, each scaled to unit variance; None when there is no variance."""
    values, vectors = _eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    total = values.sum()
    if not total > np.finfo(np.float64).tiny:
        return None
    enough = int(np.searchsorted(np.cumsum(values), variance * total)) + 1
    kept = min(enough, int((values > _RANK * total).sum()))
    return np.asarray(vectors[:, :kept] / np.sqrt(values[:kept]))


def _eigh(symmetric: Doubles) -> tuple[Doubles, Doubles]:
    """Eigenvalues (ascending, none below zero) and vectors. Torch's LAPACK took 1 ms at 128, numpy's 10."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(np.ascontiguousarray(symmetric)))
    return values.clamp(min=0.0).numpy(), vectors.numpy()
