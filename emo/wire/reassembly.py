"""Puts chunks together to payloads, within bounds of memory for each sender and in total. One caller at a time."""

import zlib
from collections import Counter, OrderedDict

from emo.errors import FrameError
from emo.journal import Journal
from emo.wire.frame import Chunk

# What Python needs beside the bytes themselves: many small chunks are not free either.
_CHUNK_COST, _MESSAGE_COST = 200, 1000
_OPEN = 4  # unfinished messages a sender may have: it sends one after another, and a reconnect cuts one
_OVER = 1024  # messages remembered as over


class Reassembler:
    """Takes chunks that come doubled, in any order, and interleaved with those of other messages.

    Each sender may have 4 unfinished messages, and more than one only within a quarter of `limit`: beyond that its
    oldest is dropped. If all together exceed `limit` bytes, the oldest of the sender that holds most is dropped. Counts
    `messages.abandoned` and `chunks.late`.
    """

    def __init__(self, limit: int, journal: Journal) -> None:
        """`limit`: bytes held for unfinished messages; joining one takes its size once more for a moment."""
        self.limit, self._journal = limit, journal
        self._open: dict[str, OrderedDict[bytes, _Parts]] = {}
        self._held: Counter[str] = Counter()
        # Messages that are over, and whether parts of them were acknowledged early.
        self._over: OrderedDict[tuple[str, bytes], bool] = OrderedDict()

    @property
    def held(self) -> int:
        """Bytes held now."""
        return self._held.total()

    def add(self, source: str, chunk: Chunk, limit: int, once: bool = True) -> bytes | None:
        """The whole payload if `chunk` completes it. `source` keeps senders apart; `limit` bounds the message.

        `once`: chunks of a message that is complete or dropped are ignored. Without it the same message may come again:
        a broker sends what it retains whenever it is asked. Messages of one chunk always may. Raises FrameError on a
        message over its limit, or whose parts contradict each other.
        """
        if not chunk.data or chunk.count > chunk.size:
            raise FrameError(f"{source}: a chunk with nothing in it")
        if chunk.size > min(limit, self.limit) or len(chunk.data) > chunk.size:
            raise FrameError(
                f"{source}: message of {chunk.size} bytes is over its limit of {min(limit, self.limit)}; "
                "has its sender the same `model` as this node?"
            )
        if chunk.count == 1:
            return _whole(source, chunk, chunk.data)
        if (source, chunk.message) in self._over:
            self._journal.count("chunks.late")
            return None
        mine = self._open.setdefault(source, OrderedDict())
        if chunk.message not in mine:
            mine[chunk.message] = _Parts(chunk, once)
            self._held[source] += _MESSAGE_COST
        parts = mine[chunk.message]
        if chunk.index in parts.data:
            return None
        if not parts.fits(chunk):
            self._end(source, chunk.message)
            raise FrameError(f"{source}: chunks of one message contradict each other")
        parts.data[chunk.index] = chunk.data
        parts.bytes += len(chunk.data)
        self._held[source] += len(chunk.data) + _CHUNK_COST
        if len(parts.data) == chunk.count:
            self._end(source, chunk.message)
            return _whole(source, chunk, b"".join(parts.data[index] for index in range(chunk.count)))
        while len(mine) > 1 and (len(mine) > _OPEN or self._held[source] > self.limit // 4):
            self._abandon(source)
        while self.held > self.limit:
            self._abandon(max(self._held, key=self._held.__getitem__))
        return None

    def unfinished(self, source: str, message: bytes) -> bool:
        """True while parts of this message are missing."""
        return message in self._open.get(source, ())

    def acknowledged(self, source: str, message: bytes) -> None:
        """A part of this message will not come again."""
        if self.unfinished(source, message):
            self._open[source][message].early = True
        elif (source, message) in self._over:
            self._over[source, message] = True

    def forget(self) -> None:
        """After a reconnect messages may come again, though they are over: those whose parts all come again."""
        self._over = OrderedDict((key, early) for key, early in self._over.items() if early)

    def _abandon(self, source: str) -> None:
        self._journal.problem("messages.abandoned", f"{source}: too many unfinished messages at once")
        self._end(source, next(iter(self._open[source])))

    def _end(self, source: str, message: bytes) -> None:
        parts = self._open[source].pop(message)
        self._held[source] -= parts.bytes + _CHUNK_COST * len(parts.data) + _MESSAGE_COST
        if not self._open[source]:
            del self._open[source], self._held[source]
        if parts.once:
            self._over[source, message] = parts.early
            if len(self._over) > _OVER:
                self._over.popitem(last=False)


class _Parts:
    def __init__(self, first: Chunk, once: bool) -> None:
        self.first, self.once, self.bytes, self.early = first, once, 0, False
        self.data: dict[int, bytes] = {}

    def fits(self, chunk: Chunk) -> bool:
        one, two = self.first, chunk
        same = (one.kind, one.count, one.size, one.crc) == (two.kind, two.count, two.size, two.crc)
        return same and self.bytes + len(chunk.data) <= chunk.size


def _whole(source: str, chunk: Chunk, payload: bytes) -> bytes:
    if len(payload) != chunk.size or zlib.crc32(payload) != chunk.crc:
        raise FrameError(f"{source}: message does not agree with its checksum")
    return payload
