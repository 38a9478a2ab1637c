"""Packets -> messages, for every channel: checks frames, sizes and topics, and says which packets the transport may
acknowledge. One caller at a time."""

from collections import deque
from typing import Generic, TypeVar

from emo.errors import TopicError, WireError
from emo.journal import Journal
from emo.logs import printable
from emo.wire import frame, topics
from emo.wire.codec import Packed
from emo.wire.limits import Limit, Limits
from emo.wire.messages import Message
from emo.wire.reassembly import Reassembler

Token = TypeVar("Token")
_MIB = 1 << 20
_STALL_S, _SOON_S = 1.0, 0.5


class Receiver(Generic[Token]):
    """`Token`: what the transport needs to acknowledge one packet (MQTT's packet id)."""

    def __init__(
        self, root: str, journal: Journal, memory_mib: int = 1024, hold: int = 8, limits: Limits | None = None
    ) -> None:
        """`hold`: packets of unfinished messages that may wait unacknowledged, of the 20 that a broker may have in flight to
        us. More would fill that window for good, so the oldest are acknowledged early. `stalled` finds smaller windows.
        `limits`: how large messages may be for this node."""
        self._root, self._journal, self._most, self._hold = root, journal, hold, hold
        self._heard, self._freed = 0.0, (float("-inf"), 0)
        self._parts = Reassembler(memory_mib * _MIB, journal)
        self.last_size = 0
        self._waiting: deque[tuple[tuple[str, bytes], Token]] = deque()
        self._limits = {kind: (limits or {}).get(kind, Limit(route.limit)) for kind, route in topics.ROUTES.items()}
        # The topic is checked before bytes are held: else one kind's large limit would let another kind flood us.
        self._filters = {kind: topics.subscription(root, kind) for kind in topics.ROUTES}

    def take(
        self, name: str, data: bytes, token: Token, now: float = 0.0, retained: bool = False
    ) -> tuple[Message | None, list[Token]]:
        """The message that the packet `data` of topic `name` completes, if it does, and tokens to acknowledge: with a
        message once that is handled, else now.

        `last_size` is then the bytes of the message, with those of its activations once decoded. What is no message of ours is
        dropped and counted as `frames.refused`; bad bytes raise nothing. `now`: seconds of a monotonic clock, for
        `stalled`. `retained`: the broker had kept it; only kinds that are retained are taken so.

        A part of a message that is complete already is dropped and acknowledged at once. After a reconnect it counts again,
        since perhaps nobody has handled the message.
        """
        at, waited = self._freed
        if now - at < _SOON_S:
            self._hold = min(self._hold, waited - 1)
        self._heard, self._freed = now, (float("-inf"), 0)
        try:
            chunk = frame.parse(data)
            kind = frame.KINDS[chunk.kind]
            route = topics.ROUTES[kind]
            source, _, last = name.rpartition("/") if route.retain else (name, "", str(chunk.index))
            if not matches(self._filters[kind], name) or last != str(chunk.index):
                raise TopicError(f"part {chunk.index} of a {kind.__name__} has no business here")
            if retained and not route.retain:
                raise TopicError(f"a {kind.__name__} that somebody has left at the broker")
        except WireError as error:
            self._refuse(name, error)
            return None, [token]
        self._journal.count(f"received_bytes.{kind.__name__}", len(data) + len(name))
        key, limit = (source, chunk.message), self._limits[kind]
        self._waiting.append((key, token))
        try:
            payload = self._parts.add(source, chunk, min(limit.payload, route.limit), once=not route.retain)
            if payload is None:
                if not self._parts.unfinished(*key):
                    return None, self._release(key)
                early = max(0, len(self._waiting) - self._hold)
                return None, [self._acknowledge_oldest() for _ in range(early)]
            message = frame.unpack(chunk.kind, payload, limit)
            packed = [value.decoded() for value in vars(message).values() if isinstance(value, Packed)]
            self.last_size = len(payload) + sum(packed)
            topics.check(self._root, name, message, chunk.index)
        except WireError as error:
            self._refuse(name, error)
            return None, self._release(key)
        return message, self._release(key)

    def stalled(self, now: float) -> list[Token]:
        """A token to acknowledge now, if packets are held back and nothing has come for a second; to be called often.

        The broker may have no more packets in flight than these, and wait for us as we do for it. If something
        comes soon after the acknowledgement, it did; then fewer are held back until the next connection.
        """
        if not self._waiting or now - self._heard < _STALL_S:
            return []
        self._heard, self._freed = now, (now, len(self._waiting))
        return [self._acknowledge_oldest()]

    def forget_tokens(self) -> None:
        """After a reconnect: what was not acknowledged comes again, with new tokens."""
        self._waiting.clear()
        self._parts.forget()
        self._hold = self._most

    def _acknowledge_oldest(self) -> Token:
        key, token = self._waiting.popleft()
        self._parts.acknowledged(*key)
        return token

    def _release(self, key: tuple[str, bytes]) -> list[Token]:
        tokens = [token for name, token in self._waiting if name == key]
        self._waiting = deque(item for item in self._waiting if item[0] != key)
        return tokens

    def _refuse(self, name: str, error: WireError) -> None:
        self._journal.problem("frames.refused", f"{printable(name, 200)}: {printable(error, 400)}; dropped")


def matches(pattern: str, name: str) -> bool:
    """True if topic `name` matches the filter `pattern`, whose levels may be '+' (MQTT 5, 4.7.1.3)."""
    wanted, levels = pattern.split("/"), name.split("/")
    return len(wanted) == len(levels) and all(want in ("+", level) for want, level in zip(wanted, levels, strict=True))
