"""A finished run on the disk: what was trained, and all weights that an ensemble can be made of.

Two kinds of folder are read, the first is written:

    DIR/run.json   DIR/weights.safetensors   the cloud's state_dir; run.json is there when the weights are whole
    DIR/plan.json  DIR/weights.safetensors   a simulated run, `emo simulate --out DIR`

The weights (emo/snapshot_file.py) hold the parts as PART/NAME; model.py names the parts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cloud_app.ensemble.model import HEAD, TRUNK
from cloud_app.result import OVERLAY
from emo import files, snapshot_file
from emo.config import Data, Model, Positive, Section
from emo.errors import EmoError, ExportError
from emo.wire.compression import Weights

R = TypeVar("R", bound=BaseModel)
A = TypeVar("A", bound=Weights)
WEIGHTS, _OLD, _KIND = "weights.safetensors", "weights.npz", "weights"
_JSON, _MOST = 16 << 20, 1 << 40  # bytes; no more memory is taken than the file has
_DO = "Export the run with the version that made it, which run.json or plan.json names, or train again."


class Edge(Section):
    """What an overlay has had: steps; batches offered by its devices, and let through."""

    steps: Annotated[int, Field(ge=0)]
    attempted: Annotated[int, Field(ge=0)]
    sent: Annotated[int, Field(ge=0)]


class Record(Section):
    """`emo`: the version that trained. `edges`: of the overlays, where that is known. `combine`: as the run was
    configured."""

    emo: str
    run: str
    rounds: Positive
    model: Model
    data: Data
    combine: Literal["probabilities", "logits"] = "probabilities"
    edges: dict[str, Edge] = Field(default_factory=dict)


class _Simulated(BaseModel):
    """What of a simulation's plan concerns what came out; its own reader is testbed/simulation/run_folder.py."""

    model_config = ConfigDict(protected_namespaces=())
    method: str
    rounds: Positive
    model: Model
    data: Data


class _Plan(BaseModel):
    version: str
    plan: _Simulated


def write(folder: Path, record: Record, parts: Mapping[str, Weights]) -> None:
    """In place of the run that is there. Raises ExportError when `folder` cannot be written."""
    try:
        (folder / "run.json").unlink(missing_ok=True)
        write_weights(folder, parts)
        (folder / _OLD).unlink(missing_ok=True)
        files.write(folder / "run.json", record.model_dump_json(indent=1).encode() + b"\n", synced=False)
    except OSError as error:
        raise ExportError(f"{folder}: the run cannot be written: {error.strerror}") from error


def write_weights(folder: Path, parts: Mapping[str, Weights]) -> None:
    """Raises OSError."""
    arrays = {f"{part}/{name}": array for part, weights in parts.items() for name, array in weights.items()}
    snapshot_file.write(folder / WEIGHTS, _KIND, Section(), arrays, synced=False)


def read(folder: Path) -> tuple[Record, dict[str, dict[str, np.ndarray]]]:
    """The run in `folder`, and its parts. Weights are not judged: whether they fit the model, `ensemble.build` says.

    Raises ExportError: no finished run, or files that are damaged; ConfigError: weights that another version of EMO wrote.
    """
    if (folder / "run.json").is_file():
        return _json(Record, folder / "run.json"), read_weights(folder, ExportError)
    if (folder / "plan.json").is_file() and any((folder / name).is_file() for name in (WEIGHTS, _OLD)):
        return _simulated(folder)
    raise ExportError(
        f"{folder}: holds no finished run: neither run.json, from the state_dir of `emo cloud`, nor the plan.json and "
        f"{WEIGHTS} of `emo simulate`"
    )


def read_weights(folder: Path, error: type[EmoError]) -> dict[str, dict[str, np.ndarray]]:
    """The parts that `write_weights` was given. Raises `error` where they are missing or damaged, ConfigError where another
    version of EMO wrote them."""
    path, parts = folder / WEIGHTS, dict[str, dict[str, np.ndarray]]()
    if not path.exists():
        if (folder / _OLD).exists():
            raise snapshot_file.other_version(str(folder / _OLD), _DO)
        raise error(f"{path}: is missing; has the run come to its end?")
    for key, array in snapshot_file.read(path, _KIND, Section, _MOST, error, _DO)[1].items():
        part, _, name = key.partition("/")
        if not (part in {TRUNK, HEAD} or part.startswith(OVERLAY)):
            raise error(f"{path}: {key[:80]!r}: no part of a run")
        parts.setdefault(part, {})[name] = array
    return parts


def members_named(method: str, parts: Mapping[str, A]) -> dict[str, A]:
    """The `parts` of a simulated run by the names of a cloud's: FL of the large network and split learning have the overlay
    where the small network has its head."""
    named = dict(parts)
    if method not in {"emo", "fl-small"} and HEAD in named:
        named[f"{OVERLAY}{method}"] = named.pop(HEAD)
    return named


def _simulated(folder: Path) -> tuple[Record, dict[str, dict[str, np.ndarray]]]:
    header = _json(_Plan, folder / "plan.json")
    plan = header.plan
    parts = members_named(plan.method, read_weights(folder, ExportError))
    record = Record(emo=header.version, run=folder.resolve().name, rounds=plan.rounds, model=plan.model, data=plan.data)
    return record, parts


def _json(kind: type[R], path: Path) -> R:
    return files.record(kind, files.whole(path, _JSON, ExportError), str(path), ExportError)
