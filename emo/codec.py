"""Arrays <-> bytes: fp32, fp16 and int8 per channel, each followed by zstd.

Knows the layout below and how to refuse bytes that break it. Knows no message, no topic, no model.

    magic "EA" | layout 1 | codec | ndim | 3 zero bytes | ndim x u32 dims | u32 raw size | zstd frame | u32 crc32

All integers little-endian; the crc covers everything before it. What is inside the zstd frame is `raw size`
bytes: fp32 and fp16 as byte planes (all lowest bytes first: exponents compress, mantissas do not), int8 as
C x f32 minimum, C x f32 step, then one byte an element. A decoded array is always float32.
"""

import math
import struct
import threading
import zlib
from collections.abc import Callable

import numpy as np
import zstandard

from emo.errors import CodecError

Array = np.ndarray

_HEAD = struct.Struct("<2sBBB3x")
_U32 = struct.Struct("<I")
_MAGIC, _LAYOUT, _MAX_DIMS = b"EA", 1, 8
_LEVEL = 3  # level 9 gains 4 % at four to eight times the time
_FP16_MAX, _SANE = 65504.0, 1e30


def encode(array: Array, codec: str, base: Array | None = None) -> bytes:
    """Bytes of a float array (1 to 8 dims, channel axis 1). Raises CodecError on an unknown codec or shape.

    An array with NaN, infinity or values of 1e30 and more goes as fp32, whatever was asked: no scale could
    carry it, and the receiver has to see it. `base` is for codecs relative to an earlier version; none of these is.
    """
    del base
    if codec not in _CODECS:
        raise CodecError(f"unknown codec {codec!r}; known: {', '.join(_CODECS)}")
    array = np.asarray(array, dtype=np.float32)
    if not 1 <= array.ndim <= _MAX_DIMS or array.size == 0:
        raise CodecError(
            f"an array of shape {array.shape} cannot be encoded: 1 to {_MAX_DIMS} dims, none empty"
        )
    array = np.ascontiguousarray(array)
    if codec != "fp32" and not np.abs(array).max() < _SANE:  # NaN too
        codec = "fp32"
    number, pack, _, _ = _CODECS[codec]
    raw = pack(array)
    body = b"".join(
        [
            _HEAD.pack(_MAGIC, _LAYOUT, number, array.ndim),
            struct.pack(f"<{array.ndim}I", *array.shape),
            _U32.pack(len(raw)),
            _compress(raw),
        ]
    )
    return body + _U32.pack(zlib.crc32(body))


def decode(data: bytes, limit: int, base: Array | None = None) -> Array:
    """The float32 array in `data`. Raises CodecError on any flipped bit, cut or trailing byte, and,
    before anything is allocated, on an array of more than `limit` bytes."""
    del base
    if len(data) < _HEAD.size + 2 * _U32.size:
        raise CodecError(f"encoded array is cut: {len(data)} bytes")
    if _U32.unpack_from(data, len(data) - 4)[0] != zlib.crc32(memoryview(data)[:-4]):
        raise CodecError("encoded array is damaged: its checksum does not agree")
    magic, layout, number, ndim = _HEAD.unpack_from(data)
    if magic != _MAGIC or layout != _LAYOUT or any(data[5:8]):
        raise CodecError(f"not an encoded array of layout {_LAYOUT}")
    known = {code: (size, unpack) for code, _, size, unpack in _CODECS.values()}
    if number not in known or not 1 <= ndim <= _MAX_DIMS:
        raise CodecError(f"encoded array has codec {number} and {ndim} dims; codecs known: {sorted(known)}")
    start = _HEAD.size + 4 * ndim + 4
    if len(data) < start + 4:
        raise CodecError("encoded array is cut inside its header")
    *shape, raw_size = struct.unpack_from(f"<{ndim + 1}I", data, _HEAD.size)
    size = math.prod(shape)
    if size == 0 or size * 4 > limit:
        raise CodecError(
            f"encoded array of shape {tuple(shape)} is over the limit of {limit} bytes, or empty"
        )
    expected, unpack = known[number]
    if raw_size != expected(shape):
        raise CodecError(
            f"encoded array says {raw_size} raw bytes, its shape {tuple(shape)} makes {expected(shape)}"
        )
    return unpack(_decompress(data[start:-4], raw_size), shape)


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


def _planes(array: Array) -> bytes:
    planes: bytes = array.reshape(-1).view(np.uint8).reshape(array.size, array.itemsize).T.tobytes()
    return planes


def _unplanes(raw: bytes, shape: list[int], dtype: str) -> Array:
    width = np.dtype(dtype).itemsize
    together: Array = np.ascontiguousarray(np.frombuffer(raw, np.uint8).reshape(width, -1).T)
    return together.view(dtype).reshape(shape).astype(np.float32)


def _channels(shape: "list[int] | tuple[int, ...]") -> int:
    return shape[1] if len(shape) > 1 else 1


def _fp16(array: Array) -> bytes:
    return _planes(np.clip(array, -_FP16_MAX, _FP16_MAX).astype("<f2"))


def _int8(array: Array) -> bytes:
    wide = array.reshape(array.shape[0] if array.ndim > 1 else array.size, _channels(array.shape), -1)
    low = wide.min(axis=(0, 2))
    step = ((wide.max(axis=(0, 2)) - low) / 255).astype("<f4")
    safe = np.where(step > 0, step, 1).astype(np.float32)
    codes = np.rint((wide - low[:, None]) / safe[:, None]).clip(0, 255).astype(np.uint8)
    return b"".join([low.astype("<f4").tobytes(), step.tobytes(), codes.tobytes()])


def _unint8(raw: bytes, shape: list[int]) -> Array:
    channels = _channels(shape)
    low, step = np.frombuffer(raw, "<f4", 2 * channels).reshape(2, channels, 1)
    codes = np.frombuffer(raw, np.uint8, offset=8 * channels).reshape(shape[0], channels, -1)
    array: Array = (codes * step + low).astype(np.float32).reshape(shape)
    return array


_Entry = tuple[int, Callable[[Array], bytes], Callable[[list[int]], int], Callable[[bytes, list[int]], Array]]
_CODECS: dict[str, _Entry] = {
    "fp32": (
        0,
        lambda a: _planes(a.astype("<f4")),
        lambda s: 4 * math.prod(s),
        lambda r, s: _unplanes(r, s, "<f4"),
    ),
    "fp16": (1, _fp16, lambda s: 2 * math.prod(s), lambda r, s: _unplanes(r, s, "<f2")),
    "int8": (2, _int8, lambda s: 8 * _channels(s) + math.prod(s), _unint8),
}


class Packed:
    """An array on its way: encoded when the wire asks for bytes, decoded when a node asks for the array.

    So the device encodes on its sender's thread and not in the training loop, and the edge can refuse a
    batch by its labels before it decodes a megabyte.
    """

    def __init__(self, source: "Array | bytes", codec: str = "fp32") -> None:
        self._source, self._codec = source, codec

    def data(self) -> bytes:
        """The encoded bytes; an encoded array stays encoded."""
        if not isinstance(self._source, bytes):
            self._source = encode(self._source, self._codec)
        return self._source

    def array(self, limit: int) -> Array:
        """The float32 array as a receiver sees it, through the codec. Raises CodecError as `decode`."""
        return decode(self.data(), limit)

    def nbytes(self) -> int:
        """Bytes it holds now: for bounding queues."""
        return len(self._source) if isinstance(self._source, bytes) else self._source.nbytes
