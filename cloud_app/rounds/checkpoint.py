"""Writes the cloud's state to files, and reads it back in the next process.

    STATE_DIR/run/00000041.safetensors   `Record`; arrays model/NAME, high/NAME and low/NAME (the round's sum), overlay/EDGE/NAME

A file is written whole or not at all, and the one before it stays: if the newest is damaged, it is set aside and the
run goes on from the other. That costs time only: devices are asked again for what the older one does not count, and
answer with the same bits.
"""

import contextlib
import time
from pathlib import Path

import numpy as np

from cloud_app.aggregation import exact_mean
from cloud_app.rounds.state import Record, State, settings
from emo import files, snapshot_file
from emo.config import CloudConfig
from emo.errors import CheckpointError, ConfigError, UpdateRefused
from emo.journal import Journal
from emo.models.state import PLAIN, Layout
from emo.wire.messages import Weights

_FILES = 2
_SHARE = 0.05  # of the time goes into writing what devices could be asked for again
_MESSAGE = 1 << 30  # bytes of a model or of an overlay: no larger message goes out or comes in
_KIND = "cloud checkpoint"
_OLD = (
    "Finish the run with the version that began it, or give it up and begin another: emo cloud --config FILE --new-run"
)


def _must_agree(record: Record, config: CloudConfig, path: Path) -> None:
    """Raises ConfigError that names the settings that were others when the run began. Settings that only one version of
    EMO has are passed over."""
    now, then = settings(config), record.settings
    odd = [name for name in sorted(now.keys() & then.keys()) if now[name] != then[name]]
    if odd:
        changes = "; ".join(f"{name} is {now[name]!r}, was {then[name]!r}" for name in odd[:5])
        raise ConfigError(
            f"{path}: run {record.run} stands in round {record.round} and was begun with other settings: {changes}. "
            "Set them back to go on with it, or give it up and begin another: emo cloud --config FILE --new-run"
        )
    record.settings = now


class Checkpoints:
    """The files in `folder`, which no other process may write.

    A disk that fails ends no run: `save` returns False and the journal counts it (`checkpoint.unwritten`).
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
        self._next = max((int(path.stem) for path in _all(folder)), default=0) + 1
        self._ended, self._took = -float("inf"), 0.0

    def load(self, config: CloudConfig, like: Weights, layout: Layout = PLAIN) -> State | None:
        """The newest one that is whole and of a model like `like` with this `layout`; None if there is none. A damaged file
        is moved to NAME.damaged and counted (`checkpoint.damaged`).

        Raises ConfigError when the run was begun with settings that are not those of `config`, or by another version
        of EMO."""
        for path in reversed(_all(self._folder)):
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
        """Whether a checkpoint that may wait would still take no more than a twentieth of the time."""
        return time.monotonic() - self._ended >= self._took / _SHARE

    def save(self, state: State) -> bool:
        """True: `state` is on the disk, and all checkpoints but the last two are gone. False: it could not be written."""
        began = time.monotonic()
        path = self._folder / f"{self._next:08d}.safetensors"
        parts = {"model": state.weights}
        if state.sum is not None and state.sum.updates:
            parts |= {"high": state.sum.high, "low": state.sum.low}
        parts |= {f"overlay/{edge}": weights for edge, weights in state.overlay_weights.items()}
        arrays = {f"{part}/{name}": array for part, named in parts.items() for name, array in named.items()}
        try:
            snapshot_file.write(path, _KIND, state, arrays)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            self._journal.problem("checkpoint.unwritten", f"{path}: cannot be written: {why}; the run goes on")
            return False
        finally:
            self._ended = time.monotonic()
            self._took = self._ended - began
        self._next += 1
        for older in _all(self._folder)[:-_FILES]:
            files.remove(older)
        return True

    def clear(self) -> None:
        """Remove all, when the run is over or given up."""
        for path in _all(self._folder):
            files.remove(path)


def agree(folder: Path, config: CloudConfig, like: Weights, layout: Layout) -> None:
    """Raises ConfigError where `Checkpoints.load` does, but changes nothing: a cloud may be running there."""
    for path in reversed(_all(folder)):
        with contextlib.suppress(CheckpointError):
            _read(path, config, like, layout)
            return


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.safetensors") if path.stem.isdecimal())


def _read(path: Path, config: CloudConfig, like: Weights, layout: Layout) -> State:
    """Raises ConfigError as `load` does, CheckpointError where the file is not what `save` writes of a model like `like`."""
    size = (6 + len(config.overlays.edges)) * _MESSAGE
    record, arrays = snapshot_file.read(path, _KIND, Record, size, CheckpointError, _OLD)
    _must_agree(record, config, path)
    overlays: dict[str, dict[str, np.ndarray]] = {edge: {} for edge in record.overlays}
    parts: dict[str, dict[str, np.ndarray]] = {"model": {}, "high": {}, "low": {}}
    parts |= {f"overlay/{edge}": weights for edge, weights in overlays.items()}
    try:
        for name, array in arrays.items():
            part = next(part for part in parts if name.startswith(f"{part}/"))
            parts[part][name.removeprefix(f"{part}/")] = array
        exact_mean.fits(like, parts["model"])
        model = {name: parts["model"][name] for name in like}
        trained = layout.trained(model)
        exact_mean.bounded(trained)
    except (UpdateRefused, StopIteration) as error:
        raise CheckpointError(f"{path}: is whole, but no checkpoint of this model: {error}") from error
    total = None
    if parts["high"] or parts["low"]:
        limbs = parts["high"], parts["low"]
        if record.opened is None or not all(_limbs_of(trained, each) for each in limbs):
            raise CheckpointError(f"{path}: is whole, but the round's sum does not fit this model")
        heard = record.opened.heard
        total = exact_mean.Sum(trained, *limbs, sum(heard.values()), len(heard))
    return State(**dict(record), weights=model, sum=total, overlay_weights=overlays)


def _limbs_of(model: Weights, limbs: Weights) -> bool:
    return limbs.keys() == model.keys() and all(
        limbs[name].dtype == np.float64 and limbs[name].shape == array.shape and np.isfinite(limbs[name]).all()
        for name, array in model.items()
    )
