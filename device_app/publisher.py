"""Makes a device's activation batches messages to its edge: those that the intervals let through, encoded against what the edge
is known to hold."""

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from device_app.intervals import IntervalTable, Sent
from emo import snapshot_file
from emo.config import DELTA, Codec, Id
from emo.errors import CodecError
from emo.wire import codec as codecs
from emo.wire.codec import Packed
from emo.wire.messages import ActivationBatch, Count, Interval, Round, TapReport

_LARGEST = 1 << 31  # bytes of one batch's activations, decoded
_KIND, _WHERE = "device", "the state of a device"
_OLD = "Run the simulation anew, or finish it with the version of EMO that began it."


class PublisherState(BaseModel, extra="forbid"):
    """One run so far, beside the frames that were sent last. `intervals`: batch -> what was sent of it last."""

    run: Id | Annotated[str, Field(max_length=0)] = ""
    attempted: Count = 0
    sent: Count = 0
    intervals: dict[Round, Sent] = {}


class _Held(Packed):
    """What was sent last, as it was encoded then."""

    def full(self) -> bytes:
        return self.data()


class Publisher:
    """`codec`: of the activations. One thread offers, another may bring the answers."""

    def __init__(self, device: str, edge: str, codec: Codec) -> None:
        self._device, self._edge, self._codec = device, edge, codec
        self.begin("")

    @property
    def run(self) -> str:
        return self._state.run

    def begin(self, run: str) -> None:
        """Another run: every batch is unknown to the edge again."""
        self._hold(PublisherState(run=run), {})

    def _hold(self, state: PublisherState, last: dict[int, Packed]) -> None:
        self._state, self._intervals = state, IntervalTable(state.intervals)
        self._last = last  # of each batch what was sent last, where the codec makes deltas

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
        self._state.attempted += 1
        base = self._last.get(batch) if self._intervals.answered(batch) else None
        if not self._intervals.allow(batch, version, fresh):
            return None
        self._state.sent += 1
        packed = Packed(activations, self._codec, base)
        if self._codec.endswith(DELTA):
            self._last[batch] = packed
        return ActivationBatch(self.run, self._edge, self._device, batch, version, packed, labels)

    def answer(self, interval: Interval) -> None:
        if interval.run == self.run:
            self._intervals.update(interval.batch, interval.version, interval.interval)

    def report(self, round: int) -> TapReport:
        """How many batches the run has offered so far, and how many went."""
        state = self._state
        return TapReport(state.run, self._edge, self._device, round, state.attempted, state.sent)

    def figures(self) -> dict[str, float]:
        return {"tap.offered": self._state.attempted, "tap.sent": self._state.sent}

    def signs(self, most: int) -> str:
        """Its intervals, as Report.intervals has them."""
        return self._intervals.signs(most)

    def state(self) -> bytes:
        """All that the next offers depend on, once every batch offered so far is encoded: snapshot_file's bytes, in the arrays
        the full frames of emo.wire.codec by batch."""
        full = {str(batch): data for batch, packed in self._last.items() if (data := packed.full())}
        frames = {batch: np.frombuffer(data, np.uint8) for batch, data in full.items()}
        return b"".join(snapshot_file.pack(_KIND, self._state, frames))

    def resume(self, data: bytes) -> None:
        """Go on from what `state` gave. Raises ConfigError where that was another version of EMO, CodecError on anything else; then
        nothing has changed."""
        state, frames = snapshot_file.unpack(data, _KIND, PublisherState, _WHERE, CodecError, _OLD)
        last: dict[int, Packed] = {}
        for batch, frame in frames.items():
            if codecs.head(frame.tobytes(), _LARGEST).base:
                raise CodecError(f"{_WHERE} holds a delta where a full frame belongs")
            try:
                last[int(batch)] = _Held(frame.tobytes())
            except ValueError as error:
                raise CodecError(f"{_WHERE}: {batch[:20]!r} is no number of a batch") from error
        self._hold(state, last)
