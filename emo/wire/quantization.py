"""Float arrays <-> the raw bytes that codec.py compresses: floats in byte planes, or a few bits per value.

Little-endian:

    floats     byte planes: all lowest bytes first, since exponents compress and mantissas do not
    quantised  C x f32 low | C x u16 step in two byte planes (upper half of an f32, low bytes first)
               | the codes, channel by channel, `per` of them a byte, the first in the highest bits

and x = low + code * step. Small codes are packed two or four a byte because zstd's Huffman coder spends at least one
bit on a byte; seeing neighbours together it comes within 2 % of the entropy of ReLU activations.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emo.errors import CodecError

Array = NDArray[np.float32]
Codes = NDArray[np.uint8]

FP16_MAX = 65504.0

# Every float16 as float32: a lookup takes a quarter of the time of numpy's conversion.
with np.errstate(invalid="ignore"):  # ARM warns of the signalling NaNs among them
    _HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)


class Floats(NamedTuple):
    """`dtype`: "<f4" or "<f2"."""

    dtype: str

    def size(self, shape: tuple[int, ...]) -> int:
        """Bytes of `raw`."""
        return np.dtype(self.dtype).itemsize * math.prod(shape)

    def pack(self, array: Array) -> bytes:
        if self.dtype == "<f2":
            array = np.clip(array, -FP16_MAX, FP16_MAX)
        return _planes(array.astype(self.dtype))

    def unpack(self, raw: bytes, shape: tuple[int, ...]) -> Array:
        if self.dtype == "<f2":
            halves: NDArray[np.uint16] = _unplanes(raw, "<u2").view(np.uint16)
            return _HALVES.take(halves).reshape(shape)
        return _unplanes(raw, self.dtype).reshape(shape).astype(np.float32)


class Quantised(NamedTuple):
    """`bits` a code, `per` codes a byte. Each channel's range is cut into 2**bits - 1 equal steps."""

    bits: int
    per: int

    def size(self, shape: tuple[int, ...]) -> int:
        """Bytes of `raw`."""
        return 6 * _channels(shape) - (-math.prod(shape) // self.per)

    def pack(self, array: Array) -> bytes:
        """Finite `array` (1 to 8 dims, channel axis 1); each value is at most half a step off."""
        rows = _rows(array)
        low, step = self._grid(rows)
        return self._raw(low, step, self._codes(rows, low, step))

    def pack_delta(self, array: Array, base: Array) -> bytes:
        """`array` against a finite `base` of its shape: its codes less those of `base` in the same steps, modulo
        2**bits. So a delta gives the very bits that `pack` would have."""
        rows = _rows(array)
        low, step = self._grid(rows)
        codes = self._codes(rows, low, step) - self._codes(_rows(base), low, step)
        return self._raw(low, step, np.bitwise_and(codes, 2**self.bits - 1, dtype=np.uint8))

    def _grid(self, rows: Array) -> tuple[Array, Array]:
        """(low, step) of each channel."""
        low = rows.min(axis=1, keepdims=True)
        return low, _rounded_up((rows.max(axis=1, keepdims=True) - low) / (2**self.bits - 1))

    def _raw(self, low: Array, step: Array, codes: Codes) -> bytes:
        halves = (step.view("<u4") >> 16).astype("<u2")
        return b"".join([low.astype("<f4").tobytes(), _planes(halves), self._join(codes.reshape(-1))])

    def unpack(self, raw: bytes, shape: tuple[int, ...], base: Array | None = None) -> Array:
        return self._array(*self._open(raw, shape, base), shape)

    def whole(self, raw: bytes, shape: tuple[int, ...], base: Array) -> tuple[Array, bytes]:
        """Of a delta against `base`: (what `unpack` gives, what `pack` gave of the same array)."""
        low, step, codes = self._open(raw, shape, base)
        head = raw[: 6 * _channels(shape)]
        return self._array(low, step, codes, shape), head + self._join(codes.reshape(-1))

    def _open(self, raw: bytes, shape: tuple[int, ...], base: Array | None) -> tuple[Array, Array, Codes]:
        """(low, step, codes), one row a channel."""
        channels = _channels(shape)
        low = np.frombuffer(raw, "<f4", channels).reshape(-1, 1)
        halves = _unplanes(raw[4 * channels : 6 * channels], "<u2")
        step = (halves.astype("<u4") << 16).view("<f4").reshape(-1, 1)
        if not (np.isfinite(low).all() and np.isfinite(step).all()):
            raise CodecError("encoded array has a channel whose range is no number")
        joined = np.frombuffer(raw, np.uint8, offset=6 * channels)
        codes = self._part(joined)[: math.prod(shape)].reshape(channels, -1)
        if base is not None:
            codes = np.bitwise_and(codes + self._codes(_rows(base), low, step), 2**self.bits - 1, dtype=np.uint8)
        return low, step, codes

    @staticmethod
    def _array(low: Array, step: Array, codes: Codes, shape: tuple[int, ...]) -> Array:
        # One multiplication and one addition, each rounded to float32: the same bits on every machine.
        with np.errstate(over="ignore"):  # crafted bytes may give infinity: the edge refuses it
            return _unrows(codes * step + low, shape)

    def _codes(self, rows: Array, low: Array, step: Array) -> Codes:
        safe = np.where(step > 0, step, np.float32(1))
        with np.errstate(over="ignore"):  # a base may lie far outside
            return np.rint((rows - low) / safe).clip(0, 2**self.bits - 1).astype(np.uint8)

    def _join(self, codes: Codes) -> bytes:
        if self.per == 1:
            return codes.tobytes()
        groups = np.zeros((-(-len(codes) // self.per), self.per), np.uint8)
        groups.reshape(-1)[: len(codes)] = codes
        joined = groups[:, 0]
        for place in range(1, self.per):
            joined = (joined << np.uint8(self.bits)) | groups[:, place]
        return joined.tobytes()

    def _part(self, joined: Codes) -> Codes:
        if self.per == 1:
            return joined
        parted: Codes = _PARTED[self.bits, self.per].take(joined).view(np.uint8)
        return parted


def _table(bits: int, per: int) -> NDArray[np.generic]:
    """For each byte its `per` codes, those of one byte as one item: a lookup is four times faster than shifts."""
    shifts = np.arange(per - 1, -1, -1, dtype=np.uint8) * np.uint8(bits)
    codes = (np.arange(256, dtype=np.uint8)[:, None] >> shifts) & np.uint8(2**bits - 1)
    return np.ascontiguousarray(codes).view(f"u{per}").reshape(-1)


_PARTED = {(bits, per): _table(bits, per) for bits, per in ((4, 2), (3, 2), (2, 4))}


def _planes(array: NDArray[np.generic]) -> bytes:
    return array.reshape(-1).view(np.uint8).reshape(array.size, array.itemsize).T.tobytes()


def _unplanes(raw: bytes, dtype: str) -> NDArray[np.generic]:
    planes = np.frombuffer(raw, np.uint8).reshape(np.dtype(dtype).itemsize, -1)
    return np.ascontiguousarray(planes.T).view(dtype).reshape(-1)


def _channels(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) > 1 else 1


def _rows(array: Array) -> Array:
    """(channels, everything else)."""
    if array.ndim < 2:
        return array.reshape(1, -1)
    return np.ascontiguousarray(array.swapaxes(0, 1)).reshape(array.shape[1], -1)


def _unrows(rows: Array, shape: tuple[int, ...]) -> Array:
    if len(shape) < 2:
        return rows.reshape(shape)
    return np.ascontiguousarray(rows.reshape(shape[1], shape[0], *shape[2:]).swapaxes(0, 1))


def _rounded_up(step: Array) -> Array:
    """To the upper 16 bits of a float32: at most 1/128 more, so that no value falls outside of the codes."""
    bits = np.ascontiguousarray(step.astype("<f4")).view("<u4")
    return ((bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view("<f4")
