"""A model's weights in fewer bytes, if a run asks for it: as fp16, or as what a round has changed; else fp32 as they are.

In every form but fp32 a float32 tensor of 2 to 8 dims travels as a uint8 array (n,): codec.py's bytes of the tensor,
or (forms in "delta-") of its difference from the base's, with its first two axes swapped. What float16 cannot hold, NaN
and infinity included, is coded as fp32, so that the receiver still sees and refuses it. The swap is for int8: codec.py
scales each channel of axis 1, and weights have their output channel on axis 0; on VGG that gives less error in fewer
bytes.

All other tensors go as they are. Biases and the tensors of norms are a few per cent of the bytes, and a small variance
that is rounded as part of a delta may come back negative: the network would give NaN.
"""

import hashlib
from collections.abc import Mapping

import numpy as np

from emo.config import Form
from emo.errors import CodecError
from emo.wire.codec import decode, encode
from emo.wire.quantization import FP16_MAX

Weights = Mapping[str, np.ndarray]
_DELTA = "delta-"


def shrink(weights: Weights, form: Form, base: Weights) -> Weights:
    """`weights` for the wire: the same object in form fp32, else a new dict of the same names.

    `base`: what the receiver restores against, of the same names and shapes: the global model that the round started
    from. A form of `Whole` ignores its values.
    """
    if form == "fp32":
        return weights
    with np.errstate(invalid="ignore"):  # infinity less infinity, of a mask
        return {
            name: _encoded(array - base[name] if form.startswith(_DELTA) else array, form) if _codable(array) else array
            for name, array in weights.items()
        }


def restore(weights: Weights, form: Form, base: Weights) -> Weights:
    """What `shrink` was given, but for rounding. Names, shapes and dtypes are those of `base`; values are not checked.

    In form fp32 the same object, unchecked: the caller checks it. Else raises CodecError that names the tensor, on
    other names, shapes or dtypes than those of `base`, and on bytes that are damaged or decode to another size: before
    these are allocated, so that a message never takes more memory than the model itself.
    """
    if form == "fp32":
        return weights
    if weights.keys() != base.keys():
        odd = sorted(weights.keys() ^ base.keys())
        raise CodecError(f"weights do not match the model here: {', '.join(odd[:3])}")
    return {name: _restored(name, array, form, base[name]) for name, array in weights.items()}


def digest(weights: Weights) -> str:
    """The first 16 hex digits of SHA-256 over `NAME|DTYPE|SHAPE|` and the bytes of each array, sorted by name."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        sha.update(f"{name}|{array.dtype.str}|{list(weights[name].shape)}|".encode())
        sha.update(array.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()[:16]


def _codable(array: np.ndarray) -> bool:
    return array.dtype == np.float32 and 2 <= array.ndim <= 8 and array.size > 0


def _encoded(values: np.ndarray, form: Form) -> np.ndarray:
    fits = (np.abs(values) <= FP16_MAX).all()  # not, with a NaN in it
    codec = form.removeprefix(_DELTA) if fits else "fp32"
    return np.frombuffer(encode(_swapped(values), codec), np.uint8)


def _restored(name: str, array: np.ndarray, form: Form, base: np.ndarray) -> np.ndarray:
    if not _codable(base):
        if array.dtype != base.dtype or array.shape != base.shape:
            raise CodecError(f"{name} is {_kind(array)}, expected {_kind(base)} as it is")
        return array
    if array.dtype != np.uint8 or array.ndim != 1:
        raise CodecError(f"{name} is {_kind(array)}, expected uint8[n], the bytes of an encoded array")
    try:
        values = decode(array.tobytes(), base.nbytes)
    except CodecError as error:
        raise CodecError(f"{name}: {error}") from error
    if values.shape != base.swapaxes(0, 1).shape:
        raise CodecError(f"{name} decodes to {_kind(values)}, expected {_kind(base.swapaxes(0, 1))}")
    values = _swapped(values)
    return base + values if form.startswith(_DELTA) else values


def _swapped(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.swapaxes(0, 1))


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)}"
