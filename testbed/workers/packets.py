"""Messages as the packets that a broker would carry, and back."""

import itertools
from collections.abc import Iterable, Iterator

from emo.errors import WireError
from emo.journal import Journal
from emo.wire import frame, topics
from emo.wire.messages import Message
from emo.wire.receiver import Receiver

Packet = tuple[str, bytes]  # topic, frame

ROOT = "emo"
CHUNK = 256 * 1024  # largest packet in bytes, as a broker's configuration has it


class Sender:
    """One node's messages as packets. `number`: 32 bits that no other sender of the same topics has."""

    def __init__(self, number: int) -> None:
        self._ids = (number << 32 | count for count in itertools.count())

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
