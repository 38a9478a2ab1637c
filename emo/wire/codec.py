"""Float arrays <-> bytes: fp32, fp16, or 8, 4, 3 or 2 bits per channel, in full or against an earlier version; then zstd.

    magic "EA" | layout 2 | codec | ndim | 3 zero bytes | ndim x u32 dims | u32 base | u32 raw size
    | zstd frame | u32 crc32

All integers are little-endian; the crc covers everything before it. `base` is 0 in a full frame. In a delta the codes are
differences, and `base` is the crc32 of the float32 bytes of the array that they are added to. The zstd frame holds
`raw size` bytes, laid out by quantization.py. A decoded array is always float32. A delta decodes to the very bits
that the full frame would have given, so errors do not add up.
"""

import math
import struct
import threading
import zlib
from typing import NamedTuple

import numpy as np
import zstandard

from emo.config import CODECS, DELTA
from emo.errors import BaseError, CodecError
from emo.wire.quantization import Floats, Quantised

Array = np.ndarray

_HEAD = struct.Struct("<2sBBB3x")
_U32 = struct.Struct("<I")
_MAGIC, _LAYOUT, _MAX_DIMS = b"EA", 2, 8
_LEVEL = 3  # level 9 gains 4 % at four to eight times the time
_SANE = 1e30

# The number on the wire is the place in this table: only ever append.
_FORMATS: dict[str, Floats | Quantised] = {
    "fp32": Floats("<f4"),
    "fp16": Floats("<f2"),
    "int8": Quantised(8, 1),
    "int4": Quantised(4, 2),
    "int3": Quantised(3, 2),
    "int2": Quantised(2, 4),
}
_NUMBERS = {name: number for number, name in enumerate(_FORMATS)}


def encode(array: Array, codec: str, base: Array | None = None) -> bytes:
    """Bytes of a float array (1 to 8 dims, channel axis 1). Raises CodecError on an unknown codec or shape.

    `codec` is one of CODECS. Those in "-delta" encode against `base`, the float32 array that the receiver holds, if it has
    the same shape and that makes fewer bytes; else they give a full frame. An array with NaN, infinity or values of 1e30
    and more goes as fp32 whatever was asked: no scale could carry it, and the receiver has to see it.
    """
    return _encode(array, codec, base)[1]


def _encode(array: Array, codec: str, base: Array | None) -> tuple[bytes, bytes]:
    """(full frame, smallest frame). Both decode to the same array; they are one object unless a delta is smaller."""
    if codec not in CODECS:
        raise CodecError(f"unknown codec {codec!r}; known: {', '.join(CODECS)}")
    array = np.asarray(array, dtype=np.float32)
    if not 1 <= array.ndim <= _MAX_DIMS or array.size == 0:
        raise CodecError(f"an array of shape {array.shape} cannot be encoded: 1 to {_MAX_DIMS} dims, none empty")
    array = np.ascontiguousarray(array)
    name = codec.removesuffix(DELTA)
    if name != "fp32" and not _sane(array):
        name = "fp32"
    kind = _FORMATS[name]
    full = _seal(name, array.shape, 0, kind.pack(array))
    if name == codec or base is None or not isinstance(kind, Quantised):
        return full, full
    base = np.ascontiguousarray(base, dtype=np.float32)
    crc = zlib.crc32(base.data)
    if base.shape != array.shape or not _sane(base) or not crc:
        return full, full
    delta = _seal(name, array.shape, crc, kind.pack_delta(array, base))
    return full, delta if len(delta) < len(full) else full


def _sane(array: Array) -> bool:
    return bool(np.abs(array).max() < _SANE)  # not, with a NaN in it


def _seal(name: str, shape: tuple[int, ...], base: int, raw: bytes) -> bytes:
    body: bytes = b"".join(
        [
            _HEAD.pack(_MAGIC, _LAYOUT, _NUMBERS[name], len(shape)),
            struct.pack(f"<{len(shape)}I", *shape),
            struct.pack("<II", base, len(raw)),
            _compress(raw),
        ]
    )
    return body + _U32.pack(zlib.crc32(body))


class Head(NamedTuple):
    """The header of an encoded array. `codec`: one of CODECS, without "-delta". `base`: 0 in a full frame."""

    codec: str
    shape: tuple[int, ...]
    base: int


def head(data: bytes, limit: int) -> Head:
    """The header of `data`. Raises CodecError as `decode`, but does not look into the zstd frame."""
    return _open(data, limit)[0]


def decode(data: bytes, limit: int, base: Array | None = None) -> Array:
    """The float32 array in `data`. Raises CodecError on any flipped bit, cut or trailing byte, and,
    before anything is allocated, on an array of more than `limit` bytes; BaseError (a CodecError) if `data` is
    a delta and `base` is not the array that it was made against. A full frame ignores `base`."""
    header, packed = _open(data, limit)
    kind, size = _FORMATS[header.codec], _FORMATS[header.codec].size(header.shape)
    if not header.base:
        full: Array = kind.unpack(_decompress(packed, size), header.shape)
        return full
    kind, base = _delta(header, base)
    return kind.unpack(_decompress(packed, size), header.shape, base)


def whole(data: bytes, limit: int, base: Array | None = None) -> tuple[Array, bytes]:
    """(the decoded array, a full frame of the same bits): `data` itself, or for a delta what `encode` would have given
    without a base. Nothing is quantised again. Raises as `decode`."""
    header, packed = _open(data, limit)
    if not header.base:
        return decode(data, limit), data
    kind, base = _delta(header, base)
    array, raw = kind.whole(_decompress(packed, kind.size(header.shape)), header.shape, base)
    return array, _seal(header.codec, header.shape, 0, raw)


def _open(data: bytes, limit: int) -> tuple[Head, bytes]:
    """(header, zstd frame), checked as far as possible without decompressing."""
    if len(data) < _HEAD.size + 3 * _U32.size:
        raise CodecError(f"encoded array is cut: {len(data)} bytes")
    if _U32.unpack_from(data, len(data) - 4)[0] != zlib.crc32(memoryview(data)[:-4]):
        raise CodecError("encoded array is damaged: its checksum does not agree")
    magic, layout, number, ndim = _HEAD.unpack_from(data)
    if magic != _MAGIC or layout != _LAYOUT or any(data[5:8]):
        raise CodecError(f"not an encoded array of layout {_LAYOUT}")
    if number >= len(_FORMATS) or not 1 <= ndim <= _MAX_DIMS:
        raise CodecError(f"encoded array has codec {number} and {ndim} dims; codecs known: 0-{len(_FORMATS) - 1}")
    start = _HEAD.size + 4 * ndim + 8
    if len(data) < start + 4:
        raise CodecError("encoded array is cut inside its header")
    *dims, base, raw_size = struct.unpack_from(f"<{ndim + 2}I", data, _HEAD.size)
    shape, name = tuple(dims), list(_FORMATS)[number]
    size, kind = math.prod(shape), _FORMATS[name]
    if size == 0 or size * 4 > limit:
        raise CodecError(f"encoded array of shape {shape} is over the limit of {limit} bytes, or empty")
    if raw_size != kind.size(shape):
        raise CodecError(f"encoded array says {raw_size} raw bytes, its shape {shape} makes {kind.size(shape)}")
    if base and not isinstance(kind, Quantised):
        raise CodecError("encoded array is a delta of floats: there is no such thing")
    return Head(name, shape, base), data[start:-4]


def _delta(header: Head, base: Array | None) -> tuple[Quantised, Array]:
    """The format of a delta and its base, checked. Raises BaseError."""
    kind = _FORMATS[header.codec]
    assert isinstance(kind, Quantised)  # says _open
    if base is None:
        raise BaseError("encoded array is a delta, and the version before it is not here")
    base = np.ascontiguousarray(base, dtype=np.float32)
    if base.shape != header.shape or zlib.crc32(base.data) != header.base or not _sane(base):
        raise BaseError("encoded array is a delta against another version than the one here")
    return kind, base


_local = threading.local()  # a compressor is 1 MB of tables, and not for two threads at once


def _compress(raw: bytes) -> bytes:
    if not hasattr(_local, "zstd"):
        _local.zstd = zstandard.ZstdCompressor(level=_LEVEL)
    data: bytes = _local.zstd.compress(raw)
    return data


def _decompress(frame: bytes, size: int) -> bytes:
    # A zstd frame that declares its size ignores max_output_size: compare before anything is allocated.
    try:
        declared = zstandard.get_frame_parameters(frame).content_size
        if declared != size:
            raise CodecError(f"zstd frame declares {declared} bytes, the header {size}")
        raw = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(f"zstd frame cannot be read: {error}") from error
    if len(raw) != size:
        raise CodecError(f"zstd frame gave {len(raw)} bytes in place of {size}")
    return raw


class Packed:
    """An array of a message: encoded when the wire asks for bytes, decoded when a node asks for the array.

    So a device encodes on its sender's thread and not in the training loop, and an edge can refuse a
    batch by its labels before it decodes a megabyte.
    """

    def __init__(self, source: "Array | bytes", codec: str = "fp32", base: "Packed | None" = None) -> None:
        """`base`: what the receiver holds, for the codecs in "-delta"; forgotten once encoded."""
        self._source, self._codec, self._base = source, codec, base
        self._full = b""  # what the next delta is made against

    def data(self) -> bytes:
        """The encoded bytes; an encoded array stays encoded."""
        if not isinstance(self._source, bytes):
            before = b"" if self._base is None else self._base.full()
            base = decode(before, 4 * self._source.size) if before else None
            full, smallest = _encode(self._source, self._codec, base)
            self._full = full if self._codec.endswith(DELTA) else b""
            self._source, self._base = smallest, None
        return self._source

    def full(self) -> bytes:
        """The full frame, which the next delta is made against; empty without a "-delta" codec, or before `data`."""
        return self._full

    def array(self, limit: int, base: "Array | None" = None) -> Array:
        """The float32 array as a receiver gets it. Raises CodecError as `decode`."""
        return decode(self.data(), limit, base)

    def decoded(self) -> int:
        """Bytes of the decoded array. Raises CodecError on bytes that are no encoded array."""
        if not isinstance(self._source, bytes):
            return self._source.nbytes
        return 4 * math.prod(head(self._source, 1 << 40).shape)

    def nbytes(self) -> int:
        """Bytes that it holds now: for bounding queues."""
        held = len(self._source) if isinstance(self._source, bytes) else self._source.nbytes
        return held + (0 if self._full is self._source else len(self._full))
