"""One batch as an HDF5 file in memory.

    /activations   an array (N, ...), or a full frame of emo.wire.codec as it is, uint8; contiguous
    /labels        integers (N, ...)
    attributes     device, batch, version; shape, dtype of the activations once decoded; codec, "" for an array;
                   checksum: crc32 of what is in /activations

The only file that imports h5py. Copies no array.
"""

import math
import threading
from typing import Any, NamedTuple

import h5py
import numpy as np
from h5py import h5d, h5f, h5p, h5s, h5t
from numpy.typing import NDArray

from emo.errors import CacheError

Array = NDArray[Any]

LARGEST = 1 << 31  # bytes of one batch's activations, decoded
ID_BYTES = 64  # the longest device id
_METADATA = 3072  # bytes ahead of the arrays, of which 2,500 are used
_IN_PLACE = 2 | 4  # H5LT_FILE_IMAGE_DONT_COPY, _DONT_RELEASE: h5py has no names for them
_lock = threading.Lock()  # two files of one name in memory are one file to libhdf5; h5py is serial anyway


class Form(NamedTuple):
    """What similar batches have in common. `shape`, `dtype` (as numpy writes it): of the activations once decoded.
    `codec`: as emo.wire.codec.Head has it, "" for an array. `labels`: their shape and dtype."""

    shape: tuple[int, ...]
    dtype: str
    codec: str
    labels: tuple[tuple[int, ...], str]


class Parts(NamedTuple):
    """A file's attributes, and where its arrays begin; `length`: bytes of /activations."""

    form: Form
    device: str
    batch: int
    version: int
    checksum: int
    labels: int
    activations: int
    length: int


def build(form: Form, device: bytes, batch: int, version: int, checksum: int, length: int) -> tuple[bytes, Parts]:
    """A file with room for its arrays. `device`: ID_BYTES long; `length`: of the frame, if it is to hold one.

    In HDF5's earliest format: no checksum covers the metadata, so numbers in it may be replaced. Takes about 1 ms.
    """
    stored = ((length,), "u1") if form.codec else (form.shape, form.dtype)
    contiguous = h5p.create(h5p.DATASET_CREATE)
    contiguous.set_layout(h5d.CONTIGUOUS)
    contiguous.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    contiguous.set_fill_time(h5d.FILL_TIME_NEVER)
    in_memory = {"driver": "core", "backing_store": False, "meta_block_size": _METADATA}
    with _lock, h5py.File("batch", "w", libver=("earliest", "v108"), **in_memory) as file:
        file.attrs["device"] = np.bytes_(device)
        file.attrs["batch"], file.attrs["version"] = np.uint64(batch), np.uint64(version)
        file.attrs["checksum"] = np.uint32(checksum)
        file.attrs["shape"] = np.array(form.shape, np.uint64)
        file.attrs["dtype"], file.attrs["codec"] = np.bytes_(form.dtype), np.bytes_(form.codec)
        places = []
        for name, (shape, dtype) in ((b"labels", form.labels), (b"activations", stored)):
            stored_as = h5t.py_create(np.dtype(dtype), logical=True)
            dataset = h5d.create(file.id, name, stored_as, h5s.create_simple(shape), contiguous)
            places.append(dataset.get_offset())
        length = dataset.get_storage_size()
        file.flush()
        image: bytes = file.id.get_file_image()
    labels, activations = places
    return image, Parts(form, device.decode("latin-1"), batch, version, checksum, labels, activations, length)


def read(image: bytearray) -> Parts | None:
    """None unless it is a file as `build` makes them. The arrays are not looked at. Takes about 0.5 ms.

    The caller has compared the checksum of the whole: libhdf5 may not survive other bytes.
    """
    try:
        with _lock, h5py.File(h5f.open_file_image(image, _IN_PLACE)) as file:
            labels, activations, attributes = file["labels"], file["activations"], file.attrs
            codec, dtype = _text(attributes["codec"]), np.dtype(_text(attributes["dtype"]))
            shape = tuple(int(extent) for extent in attributes["shape"])
            stored = ((activations.size,), np.dtype("u1")) if codec else (shape, dtype)
            if (activations.shape, activations.dtype) != stored or math.prod(shape) * dtype.itemsize > LARGEST:
                return None
            if dtype.kind not in "fiu" or labels.dtype.kind not in "iu":
                return None
            return Parts(
                Form(shape, dtype.str, codec, (labels.shape, labels.dtype.str)),
                _text(attributes["device"]),
                int(attributes["batch"]),
                int(attributes["version"]),
                int(attributes["checksum"]),
                int(labels.id.get_offset()),
                int(activations.id.get_offset()),
                int(activations.id.get_storage_size()),
            )
    except (OSError, LookupError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError):
        return None


def unknown_layout() -> CacheError:
    """For a file of `build` that cannot serve as a template."""
    return CacheError(
        f"HDF5 {h5py.version.hdf5_version} lays out a file in a way that is not known here; "
        "install the h5py that constraints.txt names"
    )


def _text(attribute: Any) -> str:
    return bytes(attribute).decode("ascii")
