"""Where the training of an overlay stands, in memory and as one file that outlives the edge.

FOLDER/overlay/checkpoint.safetensors   snapshot_file's; arrays weights/NAME, momentum/NAME, mean/NAME
"""

import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, Field, field_validator

from edge_app.overlay import augment
from edge_app.overlay.batch_filter import FilterState
from emo import files, snapshot_file
from emo.errors import CacheError, ConfigError, ModelError
from emo.journal import Journal
from emo.wire.messages import Count, Finite

NAME = "overlay/checkpoint.safetensors"
_KIND = "overlay"
_OLD = (
    "If its run is over, remove this file. Else finish the run with the version of EMO that began it; without the file the "
    "overlay starts anew."
)


class TrainingState(BaseModel, extra="forbid"):
    """What the next steps depend on beside the trainer, the cache and its disk."""

    progress: Finite = 0.0  # share of the run's rounds that are over
    spent: Count = 0  # batches, of all steps: rolled back ones too
    filter: FilterState = Field(default_factory=FilterState)


class Position(BaseModel, extra="forbid"):
    """What a State holds beside its arrays."""

    steps: Count
    random: dict[str, Any]

    @field_validator("random")
    @classmethod
    def _of_a_generator(cls, random: dict[str, Any]) -> dict[str, Any]:
        try:
            augment.generator(random)
        except ModelError as error:
            raise ValueError(str(error)) from error
        return random


@dataclass(frozen=True, slots=True)
class State:
    """`arrays`: weights/NAME of the module's whole state, mean/NAME and momentum/NAME of its trained parameters, the
    last only once there is one. `steps` that were applied; `random`: Augment.state."""

    steps: int
    arrays: dict[str, torch.Tensor]
    random: dict[str, Any]

    def misfit(self, like: "State") -> str:
        """What of `arrays` is not as `like`, a state of the same module, has it; empty when nothing."""
        own, expected = _kinds(self), _kinds(like)
        for name in [name for name in expected if name.startswith("mean/")]:
            momentum = name.replace("mean/", "momentum/", 1)
            expected.pop(momentum, None)
            if momentum in own:
                expected[momentum] = expected[name]
        odd = sorted(name for name in expected.keys() | own.keys() if expected.get(name) != own.get(name))
        return ", ".join(f"{name}: {own.get(name)}, expected {expected.get(name)}" for name in odd[:3])

    def finite(self, like: "State") -> bool:
        """Whether nothing is NaN or infinite but where `like` is: a mask of -inf is a buffer, and stays as it is."""
        known = {name: array.isfinite() for name, array in like.arrays.items()}
        return finite(
            array.where(known[name].to(array.device), 0) if name in known else array
            for name, array in self.arrays.items()
        )

    def position(self) -> Position:
        return Position(steps=self.steps, random=self.random)

    def numpy(self, prefix: str = "") -> dict[str, np.ndarray]:
        """Copied where they are not in the main memory."""
        return {f"{prefix}{name}": array.cpu().numpy() for name, array in self.arrays.items()}

    @classmethod
    def of(cls, position: Position, arrays: dict[str, np.ndarray], prefix: str = "") -> "State":
        """From what `position` and `numpy` gave."""
        own = {
            name.removeprefix(prefix): torch.from_numpy(array)
            for name, array in arrays.items()
            if name.startswith(prefix)
        }
        return cls(position.steps, own, position.random)


class _Record(BaseModel, extra="forbid"):
    run: str
    position: Position
    sampler: dict[str, Any]
    filter: FilterState


def check_version(folder: Path) -> None:
    """Raises ConfigError where another version of EMO wrote the checkpoint below `folder`: an edge refuses to start with it."""
    snapshot_file.check_version(folder / NAME, _KIND, _OLD)


@dataclass(frozen=True, slots=True)
class Saved:
    """What a file held: the trainer's state and, as they were given, the sampler's and the filter's."""

    state: State
    sampler: dict[str, Any]
    filter: FilterState


class CheckpointFile(AbstractContextManager["CheckpointFile"]):
    """The checkpoint below `folder`, which is this edge's alone.

    Raises ConfigError where another version of EMO wrote it, and nothing after that: an edge whose disk fails goes on without
    (`checkpoint.unwritten`). One thread calls; another, which runs only while there is something to do, writes.
    """

    def __init__(self, folder: Path, journal: Journal) -> None:
        self._path, self._journal = folder / NAME, journal
        self._lock = threading.Lock()
        self._next: tuple[_Record, State] | None = None
        self._writer: threading.Thread | None = None
        check_version(folder)
        for path in self._path.parent.glob(".*.tmp"):
            files.remove(path)

    def load(self, run: str, like: State) -> Saved | None:
        """The checkpoint of `run`, whole and finite, its arrays as `like` (of the overlay as it is built now) has them.

        None where there is none, or one of another run. None, and told to the journal, where it cannot be read
        (`checkpoint.unreadable`), is not as it was written and set aside (`checkpoint.damaged`), or is of
        another overlay (`checkpoint.misfit`). No more is read than a checkpoint of this overlay can hold.
        """
        limit = snapshot_file.HEAD + 12
        for name, array in like.arrays.items():  # a momentum is as large as the mean of its parameter
            limit += array.nbytes * {"weights": 1, "mean": 2}.get(name.partition("/")[0], 0)
        try:
            data = files.read(self._path, limit)
            record, arrays = snapshot_file.unpack(data, _KIND, _Record, str(self._path), CacheError, _OLD)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._problem("unreadable", f"cannot be read: {error.strerror}; the overlay starts anew")
            return None
        except (CacheError, ConfigError) as error:
            aside = self._path.with_suffix(".damaged")
            self._journal.problem(
                "checkpoint.damaged", f"{error}; it is moved to {aside.name}, the overlay starts anew"
            )
            try:
                self._path.replace(aside)
            except OSError:
                files.remove(self._path)
            return None
        state = State.of(record.position, arrays)
        wrong = state.misfit(like) or ("" if state.finite(like) else "NaN or infinity")
        if record.run == run and wrong:
            self._problem("misfit", f"does not fit this overlay ({wrong}), which starts anew")
        return Saved(state, record.sampler, record.filter) if record.run == run and not wrong else None

    def save(self, run: str, state: State, sampler: dict[str, Any], filter: FilterState) -> None:
        """Write this soon, and not at all if the next comes before it was begun. Neither `state` nor `sampler` may be changed
        from here on."""
        record = _Record(run=run, position=state.position(), sampler=sampler, filter=filter.model_copy(deep=True))
        with self._lock:
            self._next = record, state
            if self._writer is None or not self._writer.is_alive():
                self._writer = threading.Thread(target=self._write_all, name="checkpoint", daemon=True)
                self._writer.start()

    def close(self) -> None:
        """Returns when the last one given is on the disk, or has failed. Harmless twice."""
        writer = self._writer
        if writer is not None:
            writer.join()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_all(self) -> None:
        while True:
            with self._lock:
                waiting, self._next = self._next, None
                if waiting is None:
                    self._writer = None
                    return
            record, state = waiting
            try:
                files.make_folder(self._path.parent)
                snapshot_file.write(self._path, _KIND, record, state.numpy())
            except OSError as error:
                self._problem("unwritten", f"cannot be written: {error.strerror}; tried again with the next")
            except ValueError as error:
                self._problem("unwritten", f"{error}; the one before it is kept")

    def _problem(self, name: str, text: str) -> None:
        self._journal.problem(f"checkpoint.{name}", f"{self._path}: {text}")


def finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether no tensor of `tensors` holds NaN or infinity. Waits for the device once."""
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def _kinds(state: State) -> dict[str, str]:
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in state.arrays.items()}
