"""The port through which nodes talk, implemented by emo.mqtt.channel (paho) and testbed.fleet.memory_network (memory).

Every implementation keeps these promises (tests/contract/test_channel.py):
- a message arrives equal to what was sent, or not at all; doubled at worst, never mixed;
- bytes that are not a message of ours are dropped and counted;
- `publish` returns at once, also when nobody is there;
- a listener's `handle` runs on one thread a channel; a message counts as received when that has returned and, where
  there is a `settle`, when that was called after it: at the latest when nothing else waits.
"""

from collections.abc import Callable
from typing import Protocol

from emo.wire.messages import Message


class Listener:
    """Who a channel delivers to. A subclass says what it does; what it leaves out does nothing."""

    settle: Callable[[], None] | None = None
    """A method that makes what was handled last; the broker gets its acknowledgements after that. None: at once."""

    def handle(self, message: Message) -> None:
        """A message has come. What it raises is logged and counted as `bugs`."""

    def hello(self) -> Message | None:
        """What to publish after every (re)connect."""
        return None

    def forgotten(self) -> None:
        """The broker that we come back to has forgotten us, and perhaps what it retained. Called before anything that it
        brings is handled, on a thread that must not wait."""


class Channel(Protocol):
    def start(self, listener: Listener) -> None:
        """Connect and deliver."""

    def publish(self, message: Message) -> bool:
        """Queue a message; a newer one of the same key replaces it there. False: refused, counted, logged."""

    def stop(self, drain_s: float = 5.0) -> None:
        """Send what is queued, for at most `drain_s`, then let go of everything."""
