"""How far a batch has moved since the version that is cached: what the controller goes by.

Knows two arrays and the name of a policy. Knows no device, no cache and no interval.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_app.cka import cka
from edge_app.svcca import fold, svcca

Array = NDArray[Any]

# The policies that ask for a score; the others save the edge its time.
SCORES: dict[str, Callable[[Array, Array], float]] = {"svcca": svcca, "cka": cka}


def compare(policy: str, cached: Array | None, new: Array) -> tuple[float, float]:
    """(score, relative change) of `new` (N, C, *space) against `cached`, both floats as decoded.

    (0, 0) where nothing is cached; a score of NaN where the policy asks for none, where the shapes differ
    or where the score itself has nothing to say (constant activations). Compare what went through the
    same codec: quantisation alone moves both figures.
    """
    if cached is None:
        return 0.0, 0.0
    score = SCORES.get(policy)
    if score is None or cached.shape != new.shape:
        return math.nan, 0.0
    return score(fold(cached), fold(new)), relative_change(cached, new)


def relative_change(cached: Array, new: Array) -> float:
    """||new - cached|| / ||cached|| over all elements; infinite for what was all zeros and no longer is."""
    moved = float(np.linalg.norm(np.subtract(new, cached, dtype=np.float64)))
    size = float(np.linalg.norm(cached.astype(np.float64)))
    return moved / size if size > 0.0 else math.inf if moved > 0.0 else 0.0
