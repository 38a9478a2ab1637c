"""How far a batch has moved since the version that is cached, from which the controller makes its interval."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_app.intervals.cka import cka
from edge_app.intervals.svcca import fold, svcca

Array = NDArray[Any]

_FADED = 1e-20  # sums of squares below this may have lost digits in float32

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
    """||new - cached|| / ||cached|| over all elements; infinite for what was all zeros and no longer is.

    In float32, which takes a third of the time, unless its squares overflow or fade.
    """
    moved = size = 0.0
    for dtype in (np.float32, np.float64):
        with np.errstate(over="ignore", invalid="ignore"):
            moved, size = (_power(x) for x in (np.subtract(new, cached, dtype=dtype), cached.astype(dtype, copy=False)))
        if _FADED < moved < math.inf and _FADED < size < math.inf:
            break
    return math.sqrt(moved / size) if size > 0.0 else math.inf if moved > 0.0 else 0.0


def _power(x: Array) -> float:
    flat = x.reshape(-1)
    return float(flat @ flat)
