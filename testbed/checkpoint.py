"""Where a simulated method stands between two rounds: one file of a record and the global model in its checkpoint's folder."""

from pathlib import Path
from typing import TypeVar

from cloud_app.aggregation import exact_mean
from emo import snapshot_file
from emo.config import Section
from emo.errors import DataError, UpdateRefused
from emo.wire.messages import Weights

S = TypeVar("S", bound=Section)
_DO = "End the run with the version that began it (plan.json names it), or begin another one in another folder (--out)."


def write(path: Path, kind: str, state: Section, weights: Weights) -> None:
    """Raises OSError."""
    snapshot_file.write(path, kind, state, weights, synced=False)


def read(path: Path, kind: str, model: type[S], like: Weights, before: str) -> tuple[S, Weights]:
    """What `write` was given. `before`: the file that versions before wrote beside it.

    Raises DataError where it is missing, damaged, or no model like `like`; ConfigError where another version of EMO wrote it.
    """
    if path.with_name(before).exists():
        raise snapshot_file.other_version(str(path.parent), _DO)
    size = sum(array.nbytes for array in like.values())
    state, weights = snapshot_file.read(path, kind, model, size, DataError, _DO)
    try:
        exact_mean.check(like, weights)
    except UpdateRefused as error:
        raise DataError(f"{path.parent}: is of another plan: {error}") from error
    return state, weights
