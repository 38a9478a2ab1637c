"""Messages <-> frames: the pieces of a message that go into one packet each.

Knows the layout below. Knows no topic and no transport; opens nothing, reads no clock.

    frame    magic "EMO" | schema 1 | kind | 3 zero bytes | 8 bytes message id | u32 index | u32 count
             | u32 payload size | u32 payload crc32 | u32 crc32 over the 32 bytes before it and the chunk | chunk
    payload  u32 size of the header | header: JSON object, with "blobs": {field: size} | the blobs in that order

All integers little-endian. Blobs: weights are safetensors, activations are codec.py's, labels int32.
"""

import dataclasses
import json
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import safetensors
import safetensors.numpy
from pydantic import TypeAdapter, ValidationError

from emo import messages
from emo.codec import Packed
from emo.errors import FrameError, TooLarge
from emo.messages import Message

HEAD = struct.Struct("<3sBB3x8sIIII")
_U32 = struct.Struct("<I")
OVERHEAD = HEAD.size + 4
_MAGIC, _SCHEMA = b"EMO", 1
_MAX_HEADER = 1 << 20
_MAX_PAYLOAD = 1 << 30

# The number on the wire is the place in this tuple: only ever append.
KINDS: tuple[type[Message], ...] = get_args(messages.Message)
_CHECK = {kind: TypeAdapter[Any](kind) for kind in KINDS}


def _weights(data: bytes) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise FrameError(f"weights are not safetensors of numpy types: {error}") from error


def _labels(data: bytes) -> np.ndarray:
    if len(data) % 4:
        raise FrameError(f"labels are {len(data)} bytes, not a multiple of 4")
    return np.frombuffer(data, "<i4")


_BLOBS: dict[str, tuple[Callable[[Any], bytes], Callable[[bytes], Any]]] = {
    "weights": (lambda weights: safetensors.numpy.save(_contiguous(weights)), _weights),
    "activations": (Packed.data, Packed),
    "labels": (lambda labels: labels.astype("<i4").tobytes(), _labels),
}


def _contiguous(weights: messages.Weights) -> dict[str, np.ndarray]:
    # safetensors writes the buffer of a strided array as it lies.
    return {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in weights.items()}


def pack(message: Message) -> bytes:
    """The payload of a message: same message, same bytes. Raises TooLarge."""
    fields, blobs = {}, {}
    for item in dataclasses.fields(message):
        value = getattr(message, item.name)
        if item.name in _BLOBS:
            blobs[item.name] = _BLOBS[item.name][0](value)
        else:
            fields[item.name] = value.model_dump() if hasattr(value, "model_dump") else value
    fields["blobs"] = {name: len(data) for name, data in blobs.items()}
    header = json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()
    if len(header) > _MAX_HEADER:
        raise TooLarge(
            f"{type(message).__name__}: a header of {len(header)} bytes; {_MAX_HEADER} is the most"
        )
    return b"".join([_U32.pack(len(header)), header, *blobs.values()])


def unpack(kind: int, payload: bytes) -> Message:
    """The message of number `kind` in `payload`. Raises FrameError or CodecError; believes nothing unchecked."""
    if kind >= len(KINDS):
        raise FrameError(f"unknown kind of message {kind}: sent by a newer version?")
    cls = KINDS[kind]
    size = _U32.unpack_from(payload)[0] if len(payload) >= 4 else _MAX_HEADER + 1
    if size > min(_MAX_HEADER, len(payload) - 4):
        raise FrameError(f"{cls.__name__}: header of {size} bytes does not fit")
    try:
        fields = json.loads(payload[4 : 4 + size])
    except (ValueError, RecursionError) as error:
        raise FrameError(f"{cls.__name__}: header is not JSON") from error
    wanted = [item.name for item in dataclasses.fields(cls) if item.name in _BLOBS]
    blobs = fields.pop("blobs", None) if isinstance(fields, dict) else None
    if not isinstance(blobs, dict) or sorted(blobs) != sorted(wanted) or set(fields) & set(wanted):
        raise FrameError(f"{cls.__name__}: header must name the blobs {wanted}")
    if not all(type(n) is int and n >= 0 for n in blobs.values()) or 4 + size + sum(blobs.values()) != len(
        payload
    ):
        raise FrameError(f"{cls.__name__}: blobs do not add up to {len(payload)} bytes")
    at = 4 + size
    for name, length in blobs.items():
        fields[name] = _BLOBS[name][1](payload[at : at + length])
        at += length
    try:
        checked: Message = _CHECK[cls].validate_python(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise FrameError(f"{cls.__name__}.{place}: {first['msg']}") from error
    return checked


def split(message: Message, message_id: bytes, chunk: int, limit: int = _MAX_PAYLOAD) -> Iterator[bytes]:
    """Frames of at most `chunk` bytes each, headers included. `message_id`: 8 bytes, unlike any other's.

    Raises TooLarge before the first frame when the payload is over `limit` bytes: no receiver would take it.
    """
    payload = memoryview(pack(message))
    if len(payload) > limit:
        raise TooLarge(f"{type(message).__name__} of {len(payload)} bytes; {limit} is the most")
    if chunk <= OVERHEAD:
        raise TooLarge(f"packets of {chunk} bytes hold nothing but a frame's header")
    step = chunk - OVERHEAD
    count = max(1, -(-len(payload) // step))
    kind, crc = KINDS.index(type(message)), zlib.crc32(payload)
    for index in range(count):
        piece = payload[index * step : (index + 1) * step]
        head = HEAD.pack(_MAGIC, _SCHEMA, kind, message_id, index, count, len(payload), crc)
        yield b"".join([head, _U32.pack(zlib.crc32(piece, zlib.crc32(head))), piece])


@dataclasses.dataclass(frozen=True)
class Chunk:
    kind: int
    message: bytes
    index: int
    count: int
    size: int
    crc: int
    data: bytes


def parse(frame: bytes) -> Chunk:
    """One frame, checked. Raises FrameError."""
    if len(frame) < OVERHEAD:
        raise FrameError(f"frame is cut: {len(frame)} bytes")
    magic, schema, kind, message, index, count, size, crc = HEAD.unpack_from(frame)
    if magic != _MAGIC:
        raise FrameError("not an EMO frame")
    if schema != _SCHEMA:
        raise FrameError(f"frame of schema {schema}, this version reads {_SCHEMA}: upgrade the older side")
    view = memoryview(frame)
    if _U32.unpack_from(frame, HEAD.size)[0] != zlib.crc32(view[OVERHEAD:], zlib.crc32(view[: HEAD.size])):
        raise FrameError("frame is damaged: its checksum does not agree")
    if not index < count or kind >= len(KINDS) or any(frame[5:8]):
        raise FrameError(f"frame {index} of {count}, kind {kind}: impossible")
    return Chunk(kind, message, index, count, size, crc, frame[OVERHEAD:])


class Reassembler:
    """Chunks -> payloads, bounded in bytes; oldest unfinished message goes first when `limit` is reached.

    Chunks may come doubled, in any order, and interleaved with other messages'.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.held, self.abandoned = limit, 0, 0
        self._open: OrderedDict[tuple[str, bytes], _Parts] = OrderedDict()

    def add(self, source: str, chunk: Chunk, limit: int) -> bytes | None:
        """The whole payload when `chunk` completes it. `source` keeps senders apart; `limit` bounds the message.

        Raises FrameError on a message over its limit, or whose parts contradict each other.
        """
        if not chunk.data or chunk.count > chunk.size:
            raise FrameError(f"{source}: a chunk with nothing in it")
        if chunk.size > min(limit, self.limit) or len(chunk.data) > chunk.size:
            raise FrameError(
                f"{source}: message of {chunk.size} bytes is over its limit of {min(limit, self.limit)}"
            )
        key = (source, chunk.message)
        parts = self._open.setdefault(key, _Parts(chunk))
        if chunk.index in parts.data:
            return None
        if not parts.fits(chunk):
            self._drop(key)
            raise FrameError(f"{source}: chunks of one message contradict each other")
        parts.data[chunk.index] = chunk.data
        parts.bytes += len(chunk.data)
        self.held += len(chunk.data) + _CHUNK_COST
        if len(parts.data) == chunk.count:
            payload = b"".join(parts.data[index] for index in range(chunk.count))
            self._drop(key)
            if len(payload) != chunk.size or zlib.crc32(payload) != chunk.crc:
                raise FrameError(f"{source}: message does not agree with its checksum")
            return payload
        while self.held > self.limit:
            self.abandoned += 1
            self._drop(next(iter(self._open)))
        return None

    def _drop(self, key: tuple[str, bytes]) -> None:
        parts = self._open.pop(key)
        self.held -= parts.bytes + _CHUNK_COST * len(parts.data)


_CHUNK_COST = 300  # a chunk of one byte is not free either


class _Parts:
    def __init__(self, first: Chunk) -> None:
        self.first, self.bytes = first, 0
        self.data: dict[int, bytes] = {}

    def fits(self, chunk: Chunk) -> bool:
        one, two = self.first, chunk
        same = (one.kind, one.count, one.size, one.crc) == (two.kind, two.count, two.size, two.crc)
        return same and self.bytes + len(chunk.data) <= chunk.size
