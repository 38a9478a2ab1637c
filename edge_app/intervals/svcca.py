"""SVCCA: how alike two versions of the same activations are (Raghu et al. 2017, NeurIPS).

What a score means. 1 is "the same, up to a rotation or permutation of the channels, a common scale and
a shift": an overlay may see a change of 140 % where this sees none. Unrelated activations do not score
0 but about 0.87 * sqrt(c / n) for n datapoints and c channels: 0.05 at 4096 x 16, 0.43 at 256 x 64, and
exactly 1 when n <= c. Fold space into datapoints first (`fold`). Measured on VGG at 256 x 64 (tables in
docs/results/svcca.md): other weights on the same images 0.52, weights moved at random by 30 % 0.72, by
10 % 0.93, by 1 % 0.999; noise of relative L2 30 % 0.83, 10 % 0.97, 1 % 0.9996.
"""

import numpy as np
import torch
from torch import Tensor

from edge_app.intervals.covariance import Floats, covariances
from emo.errors import ModelError

_RANK = 1e-12  # directions that together hold less than this share of all variance are rounding, not signal
_STRONG = 0.04  # float32 products do while each kept direction has this part of a channel's mean variance


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

    Works on covariances of c x c, from float32 products: their error, 1e-7 of all variance, is far
    below any direction that is kept of usual activations (largest error seen on a VGG trunk: 2e-6).
    Where a kept direction is weaker than _STRONG, the score is computed again from float64 products.
    Either way it was within 1e-4 of the direct form on the worst inputs found (docs/results/svcca.md).
    """
    channels = max((*a.shape[1:], *b.shape[1:]), default=0)
    for exact in (False, True):
        products = covariances(a, b, exact=exact)
        if products is None:
            return float("nan")
        aa, ab, bb = map(torch.from_numpy, products)
        score, weakest = _score(aa, ab, bb, variance)
        if weakest * channels > _STRONG:
            break
    return float(score)


def _score(aa: Tensor, ab: Tensor, bb: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """(c, c), (c, d), (d, d) -> score, NaN where a side has no variance; the share of its side's variance in the weakest
    direction kept."""
    white_a, kept_a, weakest_a = _whitening(aa, variance)
    white_b, kept_b, weakest_b = _whitening(bb, variance)
    cross = white_a.mT @ ab @ white_b
    # Squares of the correlations: takes half the time of singular values, and costs 1e-8 at worst.
    squares: Tensor = torch.linalg.eigvalsh(cross @ cross.mT)
    score = squares.clamp(0.0, 1.0).sqrt().sum(-1) / torch.minimum(kept_a, kept_b)
    return score, torch.minimum(weakest_a, weakest_b)


def _whitening(covariance: Tensor, variance: float) -> tuple[Tensor, Tensor, Tensor]:
    """(c, k) the kept directions, each scaled to unit variance; how many; the share of variance in the weakest of them."""
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    weaker = values.cumsum(-1)  # a direction is kept if it and those below it hold more than can be dropped
    total = weaker[..., -1:]
    used = weaker > max(1.0 - variance, _RANK) * total
    kept = used.sum(-1)
    scale = torch.where(used, values.rsqrt(), 0.0)
    first = values.shape[-1] - int(kept.max())
    white = vectors[..., first:] * scale[..., None, first:]
    return white, kept, torch.where(used, values, total).amin(-1) / total[..., 0]
