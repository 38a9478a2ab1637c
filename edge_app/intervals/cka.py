"""Linear CKA: how alike two versions of the same activations are (Kornblith et al. 2019, ICML).

What a score means. As SVCCA it cannot see a rotation or permutation of channels, a common scale or a
shift. It weighs channels by their variance where SVCCA counts all directions that it keeps alike, so the
same change scores nearer to 1: noise of relative L2 10 % 0.996, 30 % 0.96. Unrelated activations score about
c / (n + c): 0.20 at 256 x 64, 0.004 at 4096 x 16.
"""

import numpy as np

from edge_app.intervals.covariance import Floats, covariances


def cka(a: Floats, b: Floats) -> float:
    """Linear CKA of `a` (n, c) and `b` (n, d), float32 or float64; in [0, 1].

    ||A'B||^2 / (||A'A|| ||B'B||), Frobenius norms of centred A and B. Within 1e-5 of that in float64,
    see `covariances`.
    NaN when nothing can be said: a NaN or an infinity in the input, or activations that are constant
    over the datapoints. Raises ModelError when the two do not have the same n datapoints.
    """
    products = covariances(a, b)
    if products is None:
        return float("nan")
    alone_a, across, alone_b = (float(np.linalg.norm(product)) for product in products)
    return min(1.0, across / alone_a * (across / alone_b))
