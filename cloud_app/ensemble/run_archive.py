"""A finished run on the disk: what was trained, and all weights that an ensemble can be made of.

Knows files and their fields; builds nothing. Two kinds of folder are read, the first is written:

    DIR/run.json   DIR/weights.npz   the cloud's state_dir; run.json is there when weights.npz is whole
    DIR/plan.json  DIR/weights.npz   a simulated run, `emo simulate --out DIR`

weights.npz holds the parts as PART/NAME (model.py names the parts). It is read array by array: no pickle, nothing
compressed, no array that claims another size than its bytes have.
"""

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.lib import format as npy
from pydantic import BaseModel, ConfigDict, Field

from cloud_app.ensemble.model import HEAD, OVERLAY, TRUNK
from emo import files
from emo.config import Data, Model, Positive, Section
from emo.errors import ExportError
from emo.wire.compression import Weights

R = TypeVar("R", bound=BaseModel)
A = TypeVar("A", bound=Weights)
_JSON = 16 << 20  # bytes
_ARRAYS = 100_000


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
    arrays: dict[str, Any] = {
        f"{part}/{name}": array for part, weights in parts.items() for name, array in weights.items()
    }
    try:
        (folder / "run.json").unlink(missing_ok=True)
        with files.create(folder / "weights.part") as file:
            np.savez(file, allow_pickle=False, **arrays)
        (folder / "weights.part").replace(folder / "weights.npz")
        files.write(folder / "run.json", record.model_dump_json(indent=1).encode() + b"\n", synced=False)
    except OSError as error:
        raise ExportError(f"{folder}: the run cannot be written: {error.strerror}") from error


def read(folder: Path) -> tuple[Record, dict[str, dict[str, np.ndarray]]]:
    """The run in `folder`, and its parts. Weights are not judged: whether they fit the model, `ensemble.build` says.

    Raises ExportError: no finished run, or files that are damaged.
    """
    if (folder / "run.json").is_file():
        return _json(Record, folder / "run.json"), _parts(folder / "weights.npz")
    if (folder / "plan.json").is_file() and (folder / "weights.npz").is_file():
        return _simulated(folder)
    raise ExportError(
        f"{folder}: holds no finished run: neither run.json, from the state_dir of `emo cloud`, nor the plan.json and "
        "weights.npz of `emo simulate`"
    )


def members_named(method: str, parts: Mapping[str, A]) -> dict[str, A]:
    """The `parts` of a simulated run by the names of a cloud's: FL of the large network and split learning have the overlay
    where the small network has its head."""
    named = dict(parts)
    if method not in {"emo", "fl-small"} and HEAD in named:
        named[f"{OVERLAY}{method}"] = named.pop(HEAD)
    return named


def _simulated(folder: Path) -> tuple[Record, dict[str, dict[str, np.ndarray]]]:
    found = _json(_Plan, folder / "plan.json")
    plan = found.plan
    parts = members_named(plan.method, _parts(folder / "weights.npz"))
    record = Record(
        emo=found.version, run=folder.resolve().name, rounds=plan.rounds, model=plan.model, data=plan.data
    )
    return record, parts


def _json(kind: type[R], path: Path) -> R:
    return files.record(kind, files.whole(path, _JSON, ExportError), str(path), ExportError)


def _parts(path: Path) -> dict[str, dict[str, np.ndarray]]:
    parts: dict[str, dict[str, np.ndarray]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # Stored, not compressed: so all of them together are no more than the file, whatever they claim.
            size = sum(entry.file_size for entry in entries)
            plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            if not plain or size > path.stat().st_size or len(entries) > _ARRAYS:
                raise ExportError(f"{path}: is compressed, or claims more than it holds: not an EMO run's")
            for entry in entries:
                part, _, name = entry.filename.removesuffix(".npy").partition("/")
                if not (part in {TRUNK, HEAD} or part.startswith(OVERLAY)) or name in parts.get(part, {}):
                    raise ExportError(f"{path}: {entry.filename[:80]!r}: no part of a run, or twice there")
                parts.setdefault(part, {})[name] = _array(archive, entry)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ExportError(f"{path}: cannot be read: {error}") from error
    return parts


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """Raises ValueError on what is no array, or one of another size than its header says."""
    with archive.open(entry) as file:
        version = npy.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{entry.filename}: an array file of version {version}")
        try:
            shape, fortran, dtype = npy.read_array_header_1_0(file)
        except Exception as error:  # it lets through whatever Python's own parser raises
            raise ValueError(f"{entry.filename}: its header is no array's: {error}") from error
        data = file.read()
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{entry.filename}: {dtype} {shape} does not fit its {len(data):,} bytes")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
