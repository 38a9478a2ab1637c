"""Where a run of the cloud stands, as files that outlive it: its next process goes on from there.

    STATE_DIR/run/00000041.safetensors   arrays model/NAME, high/NAME and low/NAME (the round's sum), overlay/EDGE/NAME;
                                         `Standing` is JSON in its metadata; the last 4 bytes are the crc32 of the rest

Knows named arrays, JSON and a folder. Knows no phase's meaning and no message on a wire.

A file is written whole or not at all, and the one before it stays: one that is found damaged is set aside, and the run
goes on from the other. Nothing is lost by that but time: devices are asked again for what it does not count, and give
the same bits.
"""

import contextlib
import logging
import struct
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import safetensors.numpy
from pydantic import BaseModel, Field
from safetensors import SafetensorError

from cloud_app.aggregation import exact_mean
from emo import files
from emo.config import CloudConfig, Id, Positive, Section
from emo.errors import CheckpointError, ConfigError, UpdateRefused
from emo.journal import Journal
from emo.models.state import PLAIN, Layout
from emo.wire.messages import Count, OverlayWeights, Weights

log = logging.getLogger("emo")

Phase = Literal["waiting", "collecting", "overlays", "done"]
MOVES: dict[Phase, set[Phase]] = {
    "waiting": {"collecting"},
    "collecting": {"waiting", "overlays"},
    "overlays": {"done"},
    "done": set(),
}
Reason = Literal["offline", "late", "refused", "cannot-train"]
Finite = Annotated[float, Field(allow_inf_nan=False)]

_FORMAT = 1
_KEPT = 2
_SHARE = 0.05  # of the time goes into writing what devices could be asked for again
_HEAD = 64 << 20  # bytes of names and JSON
_MESSAGE = 1 << 30  # bytes of a model or of an overlay: no larger message goes out or comes in
_CRC = struct.Struct("<I")
# What may change between two processes of one run: it changes no bit of what is trained.
_FREE = {
    "rounds": {"min_devices", "quorum", "deadline_s", "give_up_s", "evaluate_every"},
    "overlays": {"start_s", "wait_s", "combine", "head", "fit"},
    "data": {"dir"},
}


class Closed(Section):
    """A round that is over, as it will stand in the journal. `members`: device -> samples; `left_out`: device -> why. Of the
    members: whose update was shortened, and whose the rule did not take (aggregator.py)."""

    round: Positive
    updates: Count
    sampled: Count
    loss: Finite
    seconds: Finite
    members: dict[Id, Count]
    left_out: dict[Id, Reason]
    clipped: tuple[Id, ...] = ()
    outvoted: tuple[Id, ...] = ()


class Trained(Section):
    """What an edge says of its overlay."""

    steps: Count
    attempted: Count
    sent: Count

    @classmethod
    def of(cls, overlay: OverlayWeights) -> "Trained":
        return cls(steps=overlay.steps, attempted=overlay.attempted, sent=overlay.sent)


class Standing(Section):
    """`settings`: those that the run cannot change any more. `cap`: the most samples that one device counts for. `online`: devices that are here, with their samples;
    `heard`: those in the round's sum, `before`: the last closed round, and who was counted in it; `answered`: edges that have sent an overlay, trained or not. `trained`:
    samples that passed through training; `updates`: averaged so far. `closed`: a round whose line is still to be written.
    """

    settings: dict[str, Any]
    run: Id
    phase: Phase
    round: Positive
    online: dict[Id, Count]
    edges: list[Id]
    sampled: list[Id]
    cap: Positive | None = None
    heard: dict[Id, Positive]
    before: tuple[Count, list[Id]]
    loss: Finite
    trained: Count
    updates: Count
    closed: Closed | None
    answered: list[Id]
    overlays: dict[Id, Trained]


class _Header(BaseModel):
    """Of a safetensors file; the places of the arrays are safetensors' own to check."""

    metadata: dict[str, str] = Field(alias="__metadata__")


@dataclass(frozen=True)
class State:
    """`model`: the global model that the round starts from. `total`: of the updates in `heard`, None where these have
    to be asked for again. `overlays` by edge."""

    said: Standing
    model: Weights
    total: exact_mean.Sum | None
    overlays: Mapping[str, OverlayWeights]


def settings(config: CloudConfig) -> dict[str, Any]:
    """Of `config`, section.key -> value: all that a run must end with as it has begun."""
    whole = config.model_dump(mode="json", include={"model", "data", "rounds", "training", "overlays"})
    return {
        f"{section}.{key}": value
        for section, values in whole.items()
        for key, value in values.items()
        if key not in _FREE.get(section, ())
    }


def _must_agree(said: Standing, config: CloudConfig, where: str) -> None:
    """Raises ConfigError when the run was begun with other settings, saying which. One that only one version of EMO
    knows says nothing."""
    now, then = settings(config), said.settings
    odd = [name for name in sorted(now.keys() & then.keys()) if now[name] != then[name]]
    if odd:
        changes = "; ".join(f"{name} is {now[name]!r}, was {then[name]!r}" for name in odd[:5])
        raise ConfigError(
            f"{where}: run {said.run} stands in round {said.round} and was begun with other settings: {changes}. "
            "Set them back to go on with it, or give it up and begin another: emo cloud --new-run"
        )


class Checkpoints:
    """Those below `folder`, which is one process's alone.

    A disk that fails ends no run: `save` says False, and it is told to the journal (`checkpoint.unwritten`).
    """

    def __init__(self, folder: Path, journal: Journal) -> None:
        """Raises CheckpointError where `folder` cannot be made or read."""
        self._folder, self._journal = folder, journal
        try:
            files.make_folder(folder)
            for path in folder.iterdir():
                if files.is_left_over(path.name):
                    files.remove(path)
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be used: {error.strerror}") from error
        self._next = max((int(path.stem) for path in self._all()), default=0) + 1
        self._ended, self._took = -float("inf"), 0.0

    def load(self, config: CloudConfig, like: Weights, layout: Layout = PLAIN) -> State | None:
        """The newest that is whole, of a model like `like`, whose `layout` that is; None where there is none. What is damaged is moved to
        NAME.damaged and told to the journal (`checkpoint.damaged`).

        Raises ConfigError when the run was begun with settings that are not those of `config`."""
        for path in reversed(self._all()):
            try:
                return _read(path, config, like, layout)
            except CheckpointError as error:
                aside = path.with_suffix(".damaged")
                self._journal.problem("checkpoint.damaged", f"{error}; moved to {aside.name}")
                for older in self._folder.glob("*.damaged"):
                    files.remove(older)
                try:
                    path.replace(aside)
                except OSError:
                    files.remove(path)
        return None

    def due(self) -> bool:
        """Whether writing what is not needed would still cost a twentieth of the time only."""
        return time.monotonic() - self._ended >= self._took / _SHARE

    def save(self, state: State) -> bool:
        """On return it is on the disk, and all but the last two are gone; or it is not, and False is returned."""
        began = time.monotonic()
        path = self._folder / f"{self._next:08d}.safetensors"
        try:
            files.write(path, *_pack(state))
        except OSError as error:
            self._journal.problem(
                "checkpoint.unwritten", f"{path}: cannot be written: {error.strerror}; the run goes on"
            )
            return False
        finally:
            self._ended = time.monotonic()
            self._took = self._ended - began
        self._next += 1
        for older in self._all()[:-_KEPT]:
            files.remove(older)
        return True

    def clear(self) -> None:
        """The run is over, or given up: nothing is left to go on with."""
        for path in self._all():
            files.remove(path)

    def _all(self) -> list[Path]:
        return _kept(self._folder)


def agree(folder: Path, config: CloudConfig, like: Weights, layout: Layout) -> None:
    """Raises ConfigError where `Checkpoints.load` does; changes nothing, since a cloud may be at work there."""
    for path in reversed(_kept(folder)):
        with contextlib.suppress(CheckpointError):
            _read(path, config, like, layout)
            return


def _kept(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.safetensors") if path.stem.isdecimal())


def _read(path: Path, config: CloudConfig, like: Weights, layout: Layout) -> State:
    limit = _HEAD + (6 + len(config.overlays.edges)) * _MESSAGE
    return _unpack(files.whole(path, limit, CheckpointError), config, like, layout, str(path))


def _pack(state: State) -> list[bytes]:
    arrays = {f"model/{name}": array for name, array in state.model.items()}
    if state.total is not None:
        arrays |= {f"high/{name}": array for name, array in state.total.high.items()}
        arrays |= {f"low/{name}": array for name, array in state.total.low.items()}
    for edge, overlay in state.overlays.items():
        arrays |= {f"overlay/{edge}/{name}": array for name, array in overlay.weights.items()}
    metadata = {"format": str(_FORMAT), "standing": state.said.model_dump_json()}
    solid = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    body = safetensors.numpy.save(solid, metadata)
    return [body, _CRC.pack(zlib.crc32(body))]


def _unpack(data: bytearray, config: CloudConfig, like: Weights, layout: Layout, where: str) -> State:
    """Raises ConfigError as `load` does, CheckpointError where `data` is not, to its last byte, what `_pack` gives for a model like `like`."""
    body = memoryview(data)[: -_CRC.size]
    if len(data) <= 8 + _CRC.size or zlib.crc32(body) != _CRC.unpack_from(data, len(data) - _CRC.size)[0]:
        raise CheckpointError(f"{where}: is cut or damaged: its checksum does not agree")
    try:
        arrays = safetensors.numpy.load(bytes(body))
        head = files.record(
            _Header, bytes(body[8 : 8 + int.from_bytes(body[:8], "little")]), where, CheckpointError
        )
        said = files.record(Standing, head.metadata["standing"], where, CheckpointError)
        if head.metadata.get("format") != str(_FORMAT):
            raise CheckpointError(f"{where}: is of another version of EMO")
        _must_agree(said, config, where)
        parts: dict[str, dict[str, np.ndarray]] = {"model": {}, "high": {}, "low": {}}
        parts |= {f"overlay/{edge}": {} for edge in said.overlays}
        for name, array in arrays.items():
            part = next(part for part in parts if name.startswith(f"{part}/"))
            parts[part][name.removeprefix(f"{part}/")] = array
        exact_mean.fits(like, parts["model"])
        model = {name: parts["model"][name] for name in like}
        trained = layout.trained(model)
        exact_mean.check(trained, trained)
    except (SafetensorError, UpdateRefused, KeyError, TypeError, ValueError, StopIteration) as error:
        raise CheckpointError(f"{where}: is whole, but no checkpoint of this model: {error}") from error
    total = None
    if parts["high"] or parts["low"]:
        total = exact_mean.Sum(
            trained, parts["high"], parts["low"], sum(said.heard.values()), len(said.heard)
        )
        if not all(_limbs_of(trained, limbs) for limbs in (total.high, total.low)):
            raise CheckpointError(f"{where}: is whole, but the round's sum does not fit this model")
    overlays = {
        edge: OverlayWeights(said.run, edge, each.steps, each.attempted, each.sent, parts[f"overlay/{edge}"])
        for edge, each in said.overlays.items()
    }
    return State(said, model, total, overlays)


def _limbs_of(model: Weights, limbs: Weights) -> bool:
    return limbs.keys() == model.keys() and all(
        limbs[name].dtype == np.float64
        and limbs[name].shape == array.shape
        and np.isfinite(limbs[name]).all()
        for name, array in model.items()
    )
