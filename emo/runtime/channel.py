"""The port through which nodes talk. Implemented by emo.mqtt.channel (paho) and testbed.fleet.memory_network (memory).

Every implementation keeps these promises (tests/contract/test_channel.py):
- a message arrives equal to what was sent, or not at all; doubled at worst, never mixed;
- bytes that are not a message of ours are dropped and counted;
- `publish` returns at once, also when nobody is there;
- the handler runs on one thread a channel; a message counts as received when its handler has returned, and where
  there is `settle`, when that has been called after it: at the latest when nothing else waits.
"""

from collections.abc import Callable
from typing import Protocol

from emo.wire.messages import Message

Handler = Callable[[Message], None]


class Channel(Protocol):
    def start(
        self,
        handler: Handler,
        hello: Callable[[], Message | None] = lambda: None,
        lost: Callable[[], None] = lambda: None,
        settle: Callable[[], None] | None = None,
    ) -> None:
        """Connect and deliver. What `hello` gives is published after every (re)connect; `lost` is called when the
        broker that we come back to has forgotten us, and with us perhaps what it retained."""

    def publish(self, message: Message) -> bool:
        """Queue a message; a newer one of the same key replaces it there. False: refused, counted, logged."""

    def stop(self, drain_s: float = 5.0) -> None:
        """Send what is queued, for at most `drain_s`, then let go of everything."""
