"""A message from one end to the other: encoded, cut into packets, counted, checked and decoded again."""

from collections import Counter
from typing import TypeVar

from emo.wire.messages import Message
from testbed.workers import packets
from testbed.workers.packets import Sender

M = TypeVar("M", bound=Message)


class Wire:
    """Loses nothing. `bytes`: carried so far, by the message's class, as a broker counts them: topics and packets."""

    def __init__(self) -> None:
        self.bytes = Counter[str]()
        self._sender = Sender(0)

    def carry(self, message: M) -> M:
        """What the receiver is given. Raises TooLarge, or WireError where a channel would drop the message."""
        sent = self._sender.encode(message)
        self.bytes[type(message).__name__] += packets.size(sent)
        (arrived,) = packets.decode(sent)
        assert isinstance(arrived, type(message))
        return arrived
