"""Where a simulated fleet stands between two rounds, as files.

FOLDER/fleet.safetensors      FleetState, and the global model
FOLDER/devices/, edge-N/      links to what fleet.py and edge.py have there
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from cloud_app.aggregation import exact_mean
from emo import snapshot_file
from emo.config import Id, Section
from emo.errors import DataError, UpdateRefused
from emo.wire.messages import Weights

_FILE, _KIND = "fleet.safetensors", "simulated fleet"
_DO = "End the run with the version that began it (plan.json names it), or begin another one in another folder (--out)."


class FleetState(Section):
    """`done`: rounds that are over; `now`: virtual seconds since the first was opened; `devices`: whose files belong
    to it."""

    done: Annotated[int, Field(ge=0)]
    now: Annotated[float, Field(ge=0)]
    devices: tuple[Id, ...]


def write(folder: Path, state: FleetState, weights: Weights) -> None:
    snapshot_file.write(folder / _FILE, _KIND, state, weights, synced=False)


def read(folder: Path, like: Weights) -> tuple[FleetState, Weights]:
    """What `write` was given. Raises DataError where it is missing, damaged, or no model like `like`; ConfigError where
    another version of EMO wrote it."""
    if (folder / "fleet.json").exists():
        raise snapshot_file.other_version(str(folder), _DO)
    size = sum(array.nbytes for array in like.values())
    state, weights = snapshot_file.read(folder / _FILE, _KIND, FleetState, size, DataError, _DO)
    try:
        exact_mean.check(like, weights)
    except UpdateRefused as error:
        raise DataError(f"{folder}: is of another plan: {error}") from error
    return state, weights
