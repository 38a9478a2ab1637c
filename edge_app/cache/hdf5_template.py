"""Batches <-> files, as bytes: put together from a template, taken apart as views of the bytes.

h5py takes a millisecond to build a file and half of one to open it. But files of similar batches differ in a few numbers and
in their arrays only. So hdf5.py builds one, the template, with numbers in it that are easy to find again, and every other
file is the template with these places filled anew. Likewise a file that is a template with other numbers in it is
read without HDF5. No array is copied either way.
"""

import functools
import math
import struct
import zlib
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_app.cache import hdf5
from edge_app.cache.hdf5 import Form, Parts
from emo.errors import CacheError, CodecError
from emo.wire import codec

Array = NDArray[Any]
Buffer = bytes | bytearray | memoryview


def form_of(activations: Array | bytes, labels: Array) -> Form:
    """Raises CacheError when they cannot be stored; its text is the reason only."""
    if isinstance(activations, bytes):
        try:
            head = codec.head(activations, hdf5.LARGEST)
        except CodecError as error:
            raise CacheError(f"cannot store these bytes: {error}") from error
        if head.base:
            raise CacheError("cannot store a delta: let emo.wire.codec.whole make a full frame of it")
        form = Form(head.shape, "<f4", head.codec, (labels.shape, labels.dtype.str))
    else:
        form = Form(activations.shape, activations.dtype.str, "", (labels.shape, labels.dtype.str))
        if activations.dtype.kind not in "fiu" or activations.nbytes > hdf5.LARGEST:
            raise CacheError(f"cannot store {activations.nbytes} bytes of {activations.dtype} activations")
    if labels.dtype.kind not in "iu":
        raise CacheError(f"cannot store {labels.dtype} labels")
    if not labels.size or not math.prod(form.shape) or form.shape[:1] != labels.shape[:1]:
        raise CacheError(f"activations {form.shape} and labels {labels.shape} do not fit, or are empty")
    return form


def pack(
    form: Form, device: str, batch: int, version: int, activations: Array | bytes, labels: Array
) -> tuple[list[Buffer], int]:
    """(the file in pieces, its crc32). `form`: of these arrays. Raises CacheError where HDF5 is not as we know it."""
    payload = _bytes_of(activations)
    checksum = zlib.crc32(payload)
    template = _template(form)
    head = template.filled(device, batch, version, checksum, _bytes_of(labels), len(payload))
    crc = zlib.crc32(head)
    if form.codec:
        crc = zlib.crc32(payload, crc)
    else:  # megabytes, and always as many: one pass over them is enough
        for bit, shifted in enumerate(_shift(len(payload))):
            checksum ^= shifted if crc >> bit & 1 else 0
        crc = checksum
    return [head, payload, template.tail], zlib.crc32(template.tail, crc)


def unpack(image: bytearray) -> tuple[Parts, Array, Array] | None:
    """(attributes, activations, labels); None when it is no file of ours. Encoded activations are decoded; others, and
    labels, are views of `image`, writable.

    The caller has compared the checksum of the whole, as hdf5.read asks for.
    """
    parts = next((parts for template in tuple(_recent) if (parts := template.read(image))), None)
    if parts is None:
        parts = hdf5.read(image)
        if parts is None:
            return None
        template = _template(parts.form)
        if template not in _recent:
            _recent.append(template)
    try:
        labels = _view(image, parts.labels, *parts.form.labels)
        if not parts.form.codec:
            return parts, _view(image, parts.activations, parts.form.shape, parts.form.dtype), labels
        frame = bytes(memoryview(image)[parts.activations : parts.activations + parts.length])
        activations = codec.decode(frame, 4 * math.prod(parts.form.shape))
    except (CodecError, ValueError):
        return None
    return (parts, activations, labels) if activations.shape == parts.form.shape else None


# Numbers to look for in a template: nothing else in it is likely to be the same.
_DEVICE = bytes(range(0x80, 0x80 + hdf5.ID_BYTES))
_BATCH, _VERSION, _CHECKSUM = 0xD1CE5AFE0BA7C401, 0xD1CE5AFE7E251042, 0xC0DE5EA1
_LENGTH = 0x35A7B  # of frames: theirs vary


class _Template:
    """The file of a Form, and the places of all in which two such files differ. Raises CacheError where they are not found."""

    def __init__(self, form: Form) -> None:
        image, parts = hdf5.build(form, _DEVICE, _BATCH, _VERSION, _CHECKSUM, _LENGTH)
        self.form, self._labels, length = form, parts.labels, parts.length
        self._head, self.tail = image[: parts.activations], image[parts.activations + length :]
        self._length = 0 if form.codec else length
        self._labels_bytes = math.prod(form.labels[0]) * np.dtype(form.labels[1]).itemsize
        self._device, self._checksum = self._place(_DEVICE), self._place(_CHECKSUM.to_bytes(4, "little"))
        self._batch, self._version = self._place(_u64(_BATCH)), self._place(_u64(_VERSION))
        self._end = self._place(_u64(len(image))) if form.codec else 0
        self._lengths = self._places(_u64(_LENGTH)) if form.codec else []
        example = parts._replace(device="d", batch=2**64 - 1, version=0, checksum=7)
        if form.codec:
            example = example._replace(length=length + 1)
        head = self.filled("d", 2**64 - 1, 0, 7, b"", example.length)
        if hdf5.read(head + bytes(example.length) + self.tail) != example:
            raise hdf5.unknown_layout()

    def _places(self, wanted: bytes) -> list[int]:
        places, at = [], self._head.find(wanted)
        while at >= 0:
            places.append(at)
            at = self._head.find(wanted, at + 1)
        return places

    def _place(self, wanted: bytes) -> int:
        places = self._places(wanted)
        if len(places) != 1:
            raise hdf5.unknown_layout()
        return places[0]

    def filled(self, device: str, batch: int, version: int, checksum: int, labels: Buffer, length: int) -> bytearray:
        """The file up to the activations, which are `length` bytes."""
        head = bytearray(self._head)
        head[self._device : self._device + hdf5.ID_BYTES] = device.encode().ljust(hdf5.ID_BYTES, b"\0")
        struct.pack_into("<Q", head, self._batch, batch)
        struct.pack_into("<Q", head, self._version, version)
        struct.pack_into("<I", head, self._checksum, checksum)
        if self.form.codec:
            struct.pack_into("<Q", head, self._end, len(head) + length + len(self.tail))
        for place in self._lengths:
            struct.pack_into("<Q", head, place, length)
        head[self._labels : self._labels + len(labels)] = labels
        return head

    def read(self, image: bytearray) -> Parts | None:
        """None when it is not this template with other values."""
        length = len(image) - len(self._head) - len(self.tail)
        if length <= 0 or self._length not in (0, length):
            return None
        device = image[self._device : self._device + hdf5.ID_BYTES].rstrip(b"\0").decode("ascii", "replace")
        (batch,), (version,) = (struct.unpack_from("<Q", image, at) for at in (self._batch, self._version))
        (checksum,) = struct.unpack_from("<I", image, self._checksum)
        labels = image[self._labels : self._labels + self._labels_bytes]
        head = self.filled(device, batch, version, checksum, labels, length)
        if not image.startswith(head) or not image.endswith(self.tail):
            return None
        return Parts(self.form, device, batch, version, checksum, self._labels, len(head), length)


_template = functools.lru_cache(maxsize=64)(_Template)
# Most batches have one form; the last one of a device may have another.
_recent: deque[_Template] = deque(maxlen=4)


@functools.lru_cache(maxsize=64)
def _shift(length: int) -> tuple[int, ...]:
    """What each bit of a crc32 becomes when `length` bytes follow; with it the crc of head and payload comes from the crc of
    each, since crc(payload after x) is crc(payload) xor a linear function of x."""
    zeros = bytes(length)
    nothing = zlib.crc32(zeros)
    return tuple(zlib.crc32(zeros, 1 << bit) ^ nothing for bit in range(32))


def _view(image: bytearray, start: int, shape: tuple[int, ...], dtype: str) -> Array:
    """Raises ValueError where that is not all inside."""
    view = np.frombuffer(image, dtype, math.prod(shape), start).reshape(shape)
    return np.require(view, requirements="A")


def _bytes_of(data: Array | bytes) -> memoryview:
    return memoryview(data) if isinstance(data, bytes) else np.ascontiguousarray(data).data.cast("B")


def _u64(number: int) -> bytes:
    return number.to_bytes(8, "little")
