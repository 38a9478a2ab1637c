"""Where the training of an overlay stands, in memory and as one file that outlives the edge.

    FOLDER/overlay/checkpoint.safetensors   arrays weights/NAME, momentum/NAME, mean/NAME; the rest is JSON in its
                                            metadata; the last array, `crc32`, is that of all bytes before it

Knows named arrays, JSON and one file. Knows no module, no optimizer and no sampling.

The file is put together here, from the arrays where they lie: safetensors would copy them and hold the interpreter
for 0.3 s per 100 MB, and for as long receiving would stand still. It is read by safetensors, once its checksum is
known to be right.
"""

import json
import threading
import zlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from edge_app.overlay import augment
from emo import files
from emo.errors import CacheError, ModelError
from emo.journal import Journal

NAME = "overlay/checkpoint.safetensors"
_FORMAT = 1
_HEAD = 64 << 20  # bytes of names and JSON: the sampler's state for a million batches
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, slots=True)
class State:
    """`arrays`: weights/NAME of the module's whole state, mean/NAME and momentum/NAME of its trained parameters, the
    last only once there is one. `steps` that were applied; `random`: Augment.state."""

    steps: int
    arrays: dict[str, torch.Tensor]
    random: dict[str, Any]

    def misfit(self, like: "State") -> str:
        """What of `arrays` is not as `like`, a state of the same module, has it; empty when nothing."""
        found, expected = _kinds(self), _kinds(like)
        for name in [name for name in expected if name.startswith("mean/")]:
            momentum = name.replace("mean/", "momentum/", 1)
            expected.pop(momentum, None)
            if momentum in found:
                expected[momentum] = expected[name]
        odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        return ", ".join(f"{name}: {found.get(name)}, expected {expected.get(name)}" for name in odd[:3])

    def finite(self, like: "State") -> bool:
        """Whether nothing is NaN or infinite but where `like` is: a mask of -inf is a buffer, and stays as it is."""
        known = {name: array.isfinite() for name, array in like.arrays.items()}
        return finite(
            array.where(known[name].to(array.device), 0) if name in known else array
            for name, array in self.arrays.items()
        )


@dataclass(frozen=True, slots=True)
class Saved:
    """What a file held: the trainer's state and, as it was given, the sampler's."""

    state: State
    sampler: dict[str, Any]


class CheckpointFile(AbstractContextManager["CheckpointFile"]):
    """The checkpoint below `folder`, which is this edge's alone.

    Raises nothing: an edge whose disk fails goes on without (`checkpoint.unwritten`). One thread calls; another, which
    runs only while there is something to do, writes.
    """

    def __init__(self, folder: Path, journal: Journal) -> None:
        self._path, self._journal = folder / NAME, journal
        self._lock = threading.Lock()
        self._next: tuple[str, State, dict[str, Any]] | None = None
        self._writer: threading.Thread | None = None
        for path in self._path.parent.glob(".*.tmp"):
            files.remove(path)

    def load(self, run: str, like: State) -> Saved | None:
        """The checkpoint of `run`, whole and finite, its arrays as `like` (of the overlay as it is built now) has them.

        None where there is none, or one of another run. None, and told to the journal, where it cannot be read
        (`checkpoint.unreadable`), is not as it was written and set aside (`checkpoint.damaged`), or is of
        another overlay (`checkpoint.misfit`). No more is read than a checkpoint of this overlay can hold.
        """
        limit = _HEAD + 12
        for name, array in like.arrays.items():  # a momentum is as large as the mean of its parameter
            limit += array.nbytes * {"weights": 1, "mean": 2}.get(name.partition("/")[0], 0)
        try:
            of, saved = _unpack(bytes(files.read(self._path, limit)))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._problem("unreadable", f"cannot be read: {error.strerror}; the overlay starts anew")
            return None
        except CacheError as error:
            aside = self._path.with_suffix(".damaged")
            self._problem("damaged", f"{error}; it is moved to {aside.name}, the overlay starts anew")
            try:
                self._path.replace(aside)
            except OSError:
                files.remove(self._path)
            return None
        wrong = saved.state.misfit(like) or ("" if saved.state.finite(like) else "NaN or infinity")
        if of == run and wrong:
            self._problem("misfit", f"does not fit this overlay ({wrong}), which starts anew")
        return saved if of == run and not wrong else None

    def save(self, run: str, state: State, sampler: dict[str, Any]) -> None:
        """Write this soon, and not at all if the next comes before it was begun. Neither may be changed from here on."""
        with self._lock:
            self._next = run, state, sampler
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
                given, self._next = self._next, None
                if given is None:
                    self._writer = None
                    return
            try:
                files.make_folder(self._path.parent)
                files.write(self._path, *_pack(*given))
            except OSError as error:
                self._problem("unwritten", f"cannot be written: {error.strerror}; tried again with the next")
            except CacheError as error:
                self._problem("unwritten", f"{error}; the one before it is kept")

    def _problem(self, name: str, text: str) -> None:
        self._journal.problem(f"checkpoint.{name}", f"{self._path}: {text}")


def finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether no tensor of `tensors` holds NaN or infinity. Waits for the device once."""
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def _kinds(state: State) -> dict[str, str]:
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in state.arrays.items()}


def _pack(run: str, state: State, sampler: dict[str, Any]) -> list[files.Buffer]:
    """The pieces of a safetensors file. Raises CacheError when it would be larger than what `load` takes."""
    said = {"format": _FORMAT, "run": run, "steps": state.steps, "random": state.random, "sampler": sampler}
    # Piece by piece, so that other threads run in between.
    text = "".join(json.JSONEncoder().iterencode(said))
    head: dict[str, Any] = {"__metadata__": {"checkpoint": text}}
    end = 0
    for name, array in state.arrays.items():
        place = [end, end + array.nbytes]
        head[name] = {"dtype": _DTYPES[array.dtype], "shape": list(array.shape), "data_offsets": place}
        end += array.nbytes
    head["crc32"] = {"dtype": "U8", "shape": [4], "data_offsets": [end, end + 4]}
    header = json.dumps(head).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > _HEAD:
        raise CacheError(f"a sampler's state of {len(text) >> 20} MiB is too large for a checkpoint")
    pieces: list[files.Buffer] = [len(header).to_bytes(8, "little") + header]
    pieces += [array.cpu().reshape(-1).view(torch.uint8).numpy().data for array in state.arrays.values()]
    crc = 0
    for piece in pieces:
        crc = zlib.crc32(piece, crc)
    return [*pieces, crc.to_bytes(4, "little")]


def _unpack(data: bytes) -> tuple[str, Saved]:
    """(run, what was saved). Raises CacheError where this is not, from its first byte to its last, what `_pack` gives."""
    if len(data) < 12 or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise CacheError("is damaged, or no checkpoint of this overlay")
    try:
        arrays = safetensors.torch.load(data)
        head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        said = json.loads(head["__metadata__"]["checkpoint"])
        run, steps, random, sampler = said["run"], said["steps"], said["random"], said["sampler"]
        del arrays["crc32"]
        augment.generator(random)
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError, ModelError) as error:
        raise CacheError(f"is whole, but no checkpoint: {error}") from error
    good = type(run) is str and type(steps) is int and steps >= 0 and type(sampler) is dict
    if said.get("format") != _FORMAT or not good:
        raise CacheError("is whole, but a checkpoint of another version of EMO")
    return run, Saved(State(steps, arrays, random), sampler)
