"""What a device offers to its edge: decided by the intervals, encoded against what the edge is known to hold.

Knows one run's batches, versions and answers. Knows no network, no training loop and no channel.

    state   u32 size of the header | header | full frames of emo.wire.codec | u32 crc32 of all before it; little-endian
    header  JSON: the fields of _State; `frames`: (batch, bytes), in the order of the frames
"""

import itertools
import struct
import zlib
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from device_app.intervals import IntervalTable
from emo.config import DELTA, Codec, Id
from emo.errors import CodecError
from emo.wire import codec as codecs
from emo.wire.codec import Packed
from emo.wire.messages import ActivationBatch, Count, Finite, Interval, Round, TapReport

_U32 = struct.Struct("<I")
_LARGEST = 1 << 31  # bytes of one batch's activations, decoded


class _State(BaseModel):
    run: Id | Annotated[str, Field(max_length=0)]
    attempted: Count
    sent: Count
    rows: list[tuple[Round, Count, Annotated[Finite, Field(ge=0)] | None, Count]]
    frames: list[tuple[Round, Count]]


class _Held(Packed):
    """What was sent last, as it was encoded then."""

    def full(self) -> bytes:
        return self.data()


class Offers:
    """`codec`: of the activations. One thread offers, another may bring the answers."""

    def __init__(self, device: str, edge: str, codec: Codec) -> None:
        self._device, self._edge, self._codec = device, edge, codec
        self._intervals = IntervalTable()
        self._last: dict[int, Packed] = {}  # of each batch what was sent last, where the codec makes deltas
        self.begin("")

    @property
    def run(self) -> str:
        return self._run

    def begin(self, run: str) -> None:
        """Another run: every batch is unknown to the edge again."""
        self._run, self._attempted, self._sent = run, 0, 0
        self._intervals.reset()
        self._last.clear()

    def offer(
        self,
        batch: int,
        version: int,
        activations: NDArray[np.float32],
        labels: NDArray[np.int32],
        fresh: bool = False,
    ) -> ActivationBatch | None:
        """`activations` (N, C, ...) and `labels` (N,) of one batch as a message, or None: not this time (`fresh`: never).

        The arrays are kept, not copied. A delta is made only where the edge has answered for what was sent last.
        """
        self._attempted += 1
        base = self._last.get(batch) if self._intervals.answered(batch) else None
        if not self._intervals.allow(batch, version, fresh):
            return None
        self._sent += 1
        packed = Packed(activations, self._codec, base)
        if self._codec.endswith(DELTA):
            self._last[batch] = packed
        return ActivationBatch(self._run, self._edge, self._device, batch, version, packed, labels)

    def answer(self, interval: Interval) -> None:
        if interval.run == self._run:
            self._intervals.update(interval.batch, interval.version, interval.interval)

    def report(self, round: int) -> TapReport:
        """How many batches the run has offered so far, and how many went."""
        return TapReport(self._run, self._edge, self._device, round, self._attempted, self._sent)

    def state(self) -> bytes:
        """All that the next offers depend on, once every batch offered so far is encoded."""
        full = {batch: data for batch, packed in self._last.items() if (data := packed.full())}
        said = _State(
            run=self._run,
            attempted=self._attempted,
            sent=self._sent,
            rows=self._intervals.rows(),
            frames=[(batch, len(data)) for batch, data in full.items()],
        )
        header = said.model_dump_json().encode()
        body = b"".join([_U32.pack(len(header)), header, *full.values()])
        return body + _U32.pack(zlib.crc32(body))

    def resume(self, state: bytes) -> None:
        """Go on from what `state` gave. Raises CodecError, with nothing changed, on anything else."""
        said, full = _parsed(state)
        self._run, self._attempted, self._sent = said.run, said.attempted, said.sent
        self._intervals.resume(said.rows)
        self._last = {batch: _Held(data) for batch, data in full.items()}


def _parsed(state: bytes) -> tuple[_State, dict[int, bytes]]:
    """What a state says, and its frames by batch."""
    body, size = memoryview(state)[:-4], 4
    if len(state) < 2 * _U32.size or zlib.crc32(body) != _U32.unpack_from(state, len(state) - 4)[0]:
        raise CodecError("the state of a device's offers is cut or damaged: its checksum does not agree")
    size += _U32.unpack_from(state)[0]
    try:
        said = _State.model_validate_json(bytes(body[4:size]))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise CodecError(f"the state of a device's offers: {place}: {first['msg']}") from error
    ends = list(itertools.accumulate((length for _, length in said.frames), initial=size))
    if ends[-1] != len(body):
        raise CodecError(f"the state of a device's offers: frames end at {ends[-1]}, not at {len(body)}")
    frames = {
        batch: bytes(body[start:end])
        for (batch, _), (start, end) in zip(said.frames, itertools.pairwise(ends), strict=True)
    }
    for data in frames.values():
        if codecs.head(data, _LARGEST).base:
            raise CodecError("the state of a device's offers holds a delta where a full frame belongs")
    return said, frames
