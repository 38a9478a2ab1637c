"""Where a simulated fleet stands between two rounds, as files.

    FOLDER/fleet.json             Standing
    FOLDER/global.safetensors     the global model
    FOLDER/devices/, edge-N/      links to what fleet.py and edge.py have there

Knows fields and arrays. Knows no node and no round.
"""

from pathlib import Path
from typing import Annotated

import safetensors.numpy
from pydantic import Field, ValidationError
from safetensors import SafetensorError

from cloud_app.aggregation import exact_mean
from emo import files
from emo.config import Id, Section
from emo.errors import DataError, UpdateRefused
from emo.wire.messages import Weights

_JSON, _ARRAYS, _SLACK = "fleet.json", "global.safetensors", 1 << 20


class Standing(Section):
    """`done`: rounds that are over; `now`: virtual seconds since the first was opened; `devices`: whose files belong
    to it."""

    done: Annotated[int, Field(ge=0)]
    now: Annotated[float, Field(ge=0)]
    devices: tuple[Id, ...]


def write(folder: Path, standing: Standing, weights: Weights) -> None:
    files.write(folder / _ARRAYS, safetensors.numpy.save(dict(weights)), synced=False)
    files.write(folder / _JSON, standing.model_dump_json().encode(), synced=False)


def read(folder: Path, like: Weights) -> tuple[Standing, Weights]:
    """What `write` was given. Raises DataError where it is missing, damaged, or no model like `like`."""
    limit = sum(array.nbytes for array in like.values()) + _SLACK
    try:
        standing = Standing.model_validate_json(bytes(files.read(folder / _JSON, _SLACK)))
        weights = safetensors.numpy.load(bytes(files.read(folder / _ARRAYS, limit)))
        exact_mean.check(like, weights)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}; is it a checkpoint?") from error
    except (ValidationError, SafetensorError, UpdateRefused, KeyError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())[:300]
        raise DataError(f"{folder}: is damaged, or of another plan: {text}") from error
    return standing, {name: weights[name] for name in like}
