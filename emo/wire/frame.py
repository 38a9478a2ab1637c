"""Messages <-> frames: the pieces of a message that go into one packet each.

    frame    magic "EMO" | schema 2 | kind | 3 zero bytes | 8 bytes message id | u32 index | u32 count
             | u32 payload size | u32 payload crc32 | u32 crc32 over the 32 bytes before it and the chunk | chunk
    payload  u32 size of the header | header | the blobs
    header   JSON array: the message's fields in the order of messages.py, a blob's size in bytes in its place
    blobs    in the same order: weights are safetensors, activations are codec.py's, labels are
             u8 width (1, 2 or 4) | unsigned integers of that many bytes, below 2**31

All integers little-endian.
"""

import dataclasses
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import safetensors.numpy
from pydantic import TypeAdapter, ValidationError

from emo.errors import FrameError, TooLarge
from emo.wire import codec, limits, messages, tensors
from emo.wire.codec import Packed
from emo.wire.limits import Limit
from emo.wire.messages import Message

HEAD = struct.Struct("<3sBB3x8sIIII")
_U32 = struct.Struct("<I")
OVERHEAD = HEAD.size + 4
_MAGIC, _SCHEMA = b"EMO", 2
_MAX_PAYLOAD = 1 << 30
_ANY = Limit(_MAX_PAYLOAD)
_MAX_LABELS = 1 << 16  # a batch has 4,096 samples at most

# The number on the wire is the place in this tuple: only ever append.
KINDS: tuple[type[Message], ...] = get_args(messages.Message)
_CHECK = {kind: TypeAdapter[Any](kind) for kind in KINDS}
# Fields that came after the schema: left out at the end of a header if they are empty, so that older bytes stay valid.
_LATER: dict[type[Message], tuple[str, ...]] = {messages.Status: ("facts", "trouble")}
_LEAST = {kind: len(dataclasses.fields(kind)) - len(_LATER.get(kind, ())) for kind in KINDS}


def _packed(data: memoryview, limit: Limit) -> Packed:
    encoded = bytes(data)
    codec.head(encoded, limit.array)
    return Packed(encoded)


def _labels(data: memoryview, _limit: Limit) -> np.ndarray:
    width = data[0] if data else 0
    if width not in (1, 2, 4) or (len(data) - 1) % width or len(data) - 1 > width * _MAX_LABELS:
        raise FrameError(
            f"labels of {len(data)} bytes, {width} each: expected 1, 2 or 4 each, at most {_MAX_LABELS} labels"
        )
    labels = np.frombuffer(data, f"<u{width}", offset=1)
    if width == 4 and labels.size and labels.max() >= 2**31:
        raise FrameError("a label of 2**31 or more")
    return labels.astype("<i4")


def _narrow(labels: np.ndarray) -> bytes:
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.size > _MAX_LABELS:
        raise FrameError(
            f"labels {labels.dtype} of shape {labels.shape}: expected integers (N,), N at most {_MAX_LABELS}"
        )
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < 0 or high >= 2**31:
        raise FrameError(f"labels from {low} to {high}: expected 0 to {2**31 - 1}")
    width = 1 if high < 1 << 8 else 2 if high < 1 << 16 else 4
    return bytes([width]) + labels.astype(f"<u{width}").tobytes()


_BLOBS: dict[str, tuple[Callable[[Any], bytes], Callable[[memoryview, Limit], Any]]] = {
    "weights": (lambda weights: safetensors.numpy.save(_contiguous(weights)), tensors.load),
    "activations": (Packed.data, _packed),
    "labels": (_narrow, _labels),
}


def _contiguous(weights: messages.Weights) -> dict[str, np.ndarray]:
    # safetensors writes the buffer of a strided array as it lies.
    return {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in weights.items()}


def pack(message: Message) -> bytes:
    """The payload of a message: same message, same bytes. Raises TooLarge, FrameError on impossible labels."""
    fields: list[Any] = []
    blobs: list[bytes] = []
    for item in dataclasses.fields(message):
        value = getattr(message, item.name)
        if item.name in _BLOBS:
            blobs.append(_BLOBS[item.name][0](value))
            value = len(blobs[-1])
        fields.append(value.model_dump() if hasattr(value, "model_dump") else value)
    while len(fields) > _LEAST[type(message)] and not fields[-1]:
        fields.pop()
    header = json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()
    most = limits.header(type(message))
    if len(header) > most:
        raise TooLarge(f"{type(message).__name__}: a header of {len(header)} bytes; {most} is the most")
    return b"".join([_U32.pack(len(header)), header, *blobs])


def unpack(kind: int, payload: bytes, limit: Limit = _ANY) -> Message:
    """The message of number `kind` in `payload`, checked; makes nothing larger than `limit`. Raises FrameError or
    CodecError."""
    if kind >= len(KINDS):
        raise FrameError(f"unknown kind of message {kind}: sent by a newer version?")
    cls = KINDS[kind]
    size = _U32.unpack_from(payload)[0] if len(payload) >= 4 else len(payload)
    if size > min(limits.header(cls), len(payload) - 4):
        raise FrameError(f"{cls.__name__}: header of {size} bytes does not fit")
    try:
        values = json.loads(payload[4 : 4 + size])
    except (ValueError, RecursionError) as error:
        raise FrameError(f"{cls.__name__}: header is not JSON") from error
    names = [item.name for item in dataclasses.fields(cls)]
    if not isinstance(values, list) or not _LEAST[cls] <= len(values) <= len(names):
        raise FrameError(f"{cls.__name__}: header must be an array of {', '.join(names)}")
    fields = dict(zip(names, values, strict=False))
    sizes = {name: fields[name] for name in fields if name in _BLOBS}
    at = 4 + size
    if not all(type(n) is int and n >= 0 for n in sizes.values()) or at + sum(sizes.values()) != len(payload):
        raise FrameError(f"{cls.__name__}: blobs do not add up to {len(payload)} bytes")
    for name, length in sizes.items():
        fields[name] = _BLOBS[name][1](memoryview(payload)[at : at + length], limit)
        at += length
    try:
        checked: Message = _CHECK[cls].validate_python(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise FrameError(f"{cls.__name__}.{place}: {first['msg']}") from error
    return checked


def split(message: Message, message_id: bytes, chunk: int, limit: int = _MAX_PAYLOAD) -> Iterator[bytes]:
    """Frames of at most `chunk` bytes each, headers included. `message_id`: 8 bytes, unlike any other message's.

    Raises TooLarge before the first frame if the payload is over `limit` bytes: no receiver would take it.
    """
    payload = pack(message)
    if len(payload) > limit:
        raise TooLarge(f"{type(message).__name__} of {len(payload)} bytes; {limit} is the most")
    yield from cut(KINDS.index(type(message)), payload, message_id, chunk)


def cut(kind: int, payload: bytes, message_id: bytes, chunk: int) -> Iterator[bytes]:
    """As `split`, of any payload. Raises TooLarge if a chunk has no room for more than a frame's header."""
    if chunk <= OVERHEAD:
        raise TooLarge(f"packets of {chunk} bytes hold nothing but a frame's header")
    step = chunk - OVERHEAD
    count = max(1, -(-len(payload) // step))
    crc, view = zlib.crc32(payload), memoryview(payload)
    for index in range(count):
        piece = view[index * step : (index + 1) * step]
        head = HEAD.pack(_MAGIC, _SCHEMA, kind, message_id, index, count, len(payload), crc)
        yield b"".join([head, _U32.pack(zlib.crc32(piece, zlib.crc32(head))), piece])


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """The content of one frame. `message`: its id; `size` and `crc`: of the whole payload."""

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
