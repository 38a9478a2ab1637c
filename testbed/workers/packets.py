"""Messages as the packets that a broker would carry, and packets as lists of bytes for a pipe or a file.

Knows frames, topics and sizes. Knows nothing of what the messages say.
"""

import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from emo import files
from emo.errors import DataError, WireError
from emo.journal import Journal
from emo.wire import frame, topics
from emo.wire.messages import Message
from emo.wire.receiver import Receiver

Packet = tuple[str, bytes]  # topic, frame

ROOT = "emo"
CHUNK = 256 * 1024  # largest packet in bytes, as a broker's configuration has it
_U64 = struct.Struct("<Q")


class Sender:
    """One node's messages as packets. `number`: 32 bits that no other sender of the same topics has."""

    def __init__(self, number: int) -> None:
        self._ids = (number << 32 | each for each in itertools.count())

    def encode(self, message: Message) -> list[Packet]:
        """Raises TooLarge."""
        message_id = next(self._ids).to_bytes(8, "little")
        frames = frame.split(message, message_id, CHUNK, topics.ROUTES[type(message)].limit)
        return [(topics.topic(ROOT, message, index), data) for index, data in enumerate(frames)]


def decode(packets: Iterable[Packet]) -> Iterator[Message]:
    """The messages, as a node's channel hands them over. Raises WireError where a channel would drop one."""
    receiver = Receiver[None](ROOT, Journal())
    complete, name = True, ""
    for name, data in packets:
        message, _ = receiver.take(name, data, None)
        complete = message is not None
        if message is not None:
            yield message
    if not complete:
        raise WireError(f"{name}: a message is damaged or not whole")


def size(packets: Iterable[Packet]) -> int:
    """Bytes as a broker counts them."""
    return sum(len(name) + len(data) for name, data in packets)


def flat(groups: Iterable[Sequence[Packet]]) -> list[bytes]:
    """Groups of packets as one list of bytes."""
    known = [list(group) for group in groups]
    counts = ",".join(str(len(group)) for group in known).encode()
    return [counts, *(part for group in known for name, data in group for part in (name.encode(), data))]


def groups(parts: Sequence[bytes]) -> list[list[Packet]]:
    """What `flat` was given. Raises DataError."""
    try:
        counts = [int(count) for count in parts[0].split(b",")] if parts[0] else []
        rest = iter([(name.decode(), data) for name, data in zip(parts[1::2], parts[2::2], strict=True)])
        found = [[next(rest) for _ in range(count)] for count in counts]
    except (IndexError, StopIteration, ValueError) as error:
        raise DataError(f"{len(parts)} parts do not make groups of packets") from error
    if next(rest, None) is not None:
        raise DataError(f"{len(parts)} parts are more than their groups of packets hold")
    return found


def write(path: Path, parts: Iterable[bytes]) -> None:
    """`path` holds the parts, each after its size; a file that was there is replaced, not changed. Not synced."""
    files.write(path, *(piece for part in parts for piece in (_U64.pack(len(part)), part)), synced=False)


def read(path: Path, limit: int) -> list[bytes]:
    """What `write` was given. Raises DataError where the file is missing, cut or over `limit` bytes."""
    try:
        data = memoryview(files.read(path, min(limit, path.stat().st_size)))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    parts = []
    at = 0
    while at + _U64.size <= len(data) <= limit:
        start = at + _U64.size
        at = start + _U64.unpack_from(data, at)[0]
        parts.append(bytes(data[start:at]))
    if at != len(data):
        raise DataError(f"{path}: is cut, damaged or larger than {limit} bytes")
    return parts
