"""One file of checked fields and arrays, whole or not there: whatever a node goes on from, and what a run leaves.

A safetensors file, put together from the arrays where they lie: safetensors itself would copy them, and hold the
interpreter for 0.3 s per 100 MB. `__metadata__` holds `emo`, the file's kind and the version of its layout, and `record`, JSON
of a pydantic model; the last array, `crc32`, is the checksum of all bytes before it.
"""

import json
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from emo import __version__, files
from emo.errors import ConfigError, EmoError

R = TypeVar("R", bound=BaseModel)
HEAD = 64 << 20  # bytes of names and fields: a sampler's state for a million batches
_VERSION = 1
_CRC = "crc32"
_DTYPES = {
    np.dtype(kind): name
    for name, kind in {
        "F64": "<f8",
        "F32": "<f4",
        "F16": "<f2",
        "I64": "<i8",
        "I32": "<i4",
        "I16": "<i2",
        "I8": "i1",
        "U64": "<u8",
        "U32": "<u4",
        "U16": "<u2",
        "U8": "u1",
        "BOOL": "?",
    }.items()
}


class _Header(BaseModel):
    """Of a safetensors file; the places of the arrays are safetensors' own to check."""

    model_config = ConfigDict(extra="allow")
    metadata: dict[str, str] = Field({}, alias="__metadata__")

    @property
    def names(self) -> list[str]:
        return list(self.model_extra or {})

    def of_another_version(self, kind: str) -> bool:
        """The first versions wrote no `emo`. Of a damaged file something that `pack` gave it is left."""
        if self.metadata.keys() & {"emo", "record"} or (not self.metadata and _CRC in self.names):
            written, _, version = self.metadata.get("emo", "").rpartition(" ")
            return written == kind and version.isdigit() and version != str(_VERSION)
        return True


def write(path: Path, kind: str, record: BaseModel, arrays: Mapping[str, np.ndarray], *, synced: bool = True) -> None:
    """In place of what is at `path`, as `files.write` does. Raises OSError, and ValueError where `record` is too large."""
    files.write(path, *pack(kind, record, arrays), synced=synced)


def pack(kind: str, record: BaseModel, arrays: Mapping[str, np.ndarray]) -> list[files.Buffer]:
    """The pieces of such a file. `kind`: what it is, in a word or two: `read` asks for the same."""
    # Piece by piece, so that other threads run in between.
    text = "".join(json.JSONEncoder().iterencode(record.model_dump(mode="json")))
    head: dict[str, object] = {"__metadata__": {"emo": f"{kind} {_VERSION}", "record": text}}
    end, pieces = 0, []
    for name, array in arrays.items():
        head[name] = {
            "dtype": _DTYPES[array.dtype],
            "shape": array.shape,
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
        pieces.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    head[_CRC] = {"dtype": "U8", "shape": [4], "data_offsets": [end, end + 4]}
    header = json.dumps(head).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > HEAD:
        raise ValueError(f"a record of {len(text) >> 20} MiB is too large for a file of state")
    whole: list[files.Buffer] = [len(header).to_bytes(8, "little") + header, *pieces]
    crc = 0
    for piece in whole:
        crc = zlib.crc32(piece, crc)
    return [*whole, crc.to_bytes(4, "little")]


def read(
    path: Path, kind: str, model: type[R], size: int, error: type[EmoError], old: str
) -> tuple[R, dict[str, np.ndarray]]:
    """What was written: the record, and the arrays in their order, which the caller has yet to compare with what they should
    be. `size`: bytes that the arrays may have.

    Raises `error` where the file is missing, larger, damaged or of another kind; ConfigError where another version of
    EMO wrote it, followed by `old`: what its user is to do.
    """
    return unpack(files.whole(path, size + HEAD + 12, error), kind, model, str(path), error, old)


def unpack(
    data: bytes | bytearray, kind: str, model: type[R], where: str, error: type[EmoError], old: str
) -> tuple[R, dict[str, np.ndarray]]:
    """As `read`, of a file's bytes."""
    header = _header(data)
    written = header.metadata.get("emo", "")
    sound = len(data) >= 12 and zlib.crc32(memoryview(data)[:-4]) == int.from_bytes(data[-4:], "little")
    if header.of_another_version(kind) and (sound or not written):
        raise other_version(where, old)
    if not sound:
        raise error(f"{where}: is cut or damaged: its checksum does not agree")
    if written != f"{kind} {_VERSION}":
        raise error(f"{where}: is a file of another kind: {written!r}, not {kind!r}")
    record = files.record(model, header.metadata.get("record", ""), where, error)
    try:
        arrays = safetensors.numpy.load(bytes(data))  # in no order
    except (SafetensorError, KeyError, TypeError, ValueError) as cause:
        raise error(f"{where}: is whole, but its arrays cannot be read: {cause}") from cause
    return record, {name: arrays[name] for name in header.names if name != _CRC}


def check_version(path: Path, kind: str, old: str) -> None:
    """Raises ConfigError, followed by `old`, where another version of EMO wrote `path`; all else that may be wrong with it `read` tells."""
    with suppress(OSError), path.open("rb") as file:
        size = file.read(8)
        if _header(size + file.read(min(int.from_bytes(size, "little"), HEAD))).of_another_version(kind):
            raise other_version(str(path), old)


def other_version(where: str, old: str) -> ConfigError:
    """That a file at `where` is of no layout that is read here. `old`: what its user is to do."""
    return ConfigError(
        f"{where}: was written by another version of EMO than this one ({__version__}), which does not read it. {old}"
    )


def _header(data: bytes | bytearray) -> _Header:
    size = min(int.from_bytes(data[:8], "little"), HEAD)
    try:
        return _Header.model_validate_json(bytes(data[8 : 8 + size]))
    except ValidationError:
        return _Header(__metadata__={"emo": "?"})
