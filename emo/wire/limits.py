"""How large a message may be for a given node: as its own model and configuration make it.

A node says so once (`limits()`); its channels check it before they keep a byte or parse a header. The limits in
topics.ROUTES are caps, whatever a configuration says.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from emo.wire.compression import Weights
from emo.wire.messages import GlobalModel, Message, RunHistory

_ENTRY = 1 << 10  # bytes of one tensor in a safetensors header: a name of 800 characters fits
_CODED = 256  # bytes beside the values of an encoded array, and more


class Limit(NamedTuple):
    """`payload`: bytes of the whole message. `tensors`: in its weights. `array`: bytes of its encoded array once decoded."""

    payload: int
    tensors: int = 10_000
    array: int = 64 << 20

    @property
    def names(self) -> int:
        """Bytes that the header of its weights may take."""
        return (self.tensors + 4) * _ENTRY


Limits = Mapping[type[Message], Limit]


def header(kind: type[Message]) -> int:
    """Bytes that the fields of a message may take as JSON. A global model names the devices that are to train."""
    return {GlobalModel: 1 << 20, RunHistory: 128 << 10}.get(kind, 16 << 10)


def of_weights(kind: type[Message], like: Weights) -> Limit:
    """For messages of `kind` with weights of these shapes, in any form (compression.py)."""
    limit = Limit(0, len(like))
    # Quantised, a channel of a single value takes 7 bytes in place of 4.
    values = sum(2 * array.nbytes + _CODED for array in like.values())
    return limit._replace(payload=header(kind) + limit.names + values)


def of_batches(kind: type[Message], samples: int, shape: Sequence[int]) -> Limit:
    """For messages of `kind` with activations of up to `samples` samples, each of `shape`."""
    array = 4 * samples * math.prod(shape)
    return Limit(header(kind) + 2 * array + _CODED + 4 * samples, array=array)
