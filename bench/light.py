"""Devices that are nothing but a connection: for bench.scale, a thousand of them on one thread.

They speak as much of MQTT 3.1.1 as a subscriber at QoS 1 needs, and train nothing: an update is the global model itself.
"""

import asyncio
import contextlib
import itertools
import os
import random

import numpy as np

from emo.config import Model
from emo.journal import Journal
from emo.models import split_network
from emo.wire import frame, topics
from emo.wire.codec import Packed
from emo.wire.messages import ActivationBatch, GlobalModel, Message, Refused, Status, TapReport, Update
from emo.wire.receiver import Receiver

MODEL = Model(name="cnn", width=0.5)
_SAMPLES, _BATCHES = 16, 2
_CHUNK = 256 << 10
_CONNECT, _CONNACK, _PUBLISH, _PUBACK, _SUBSCRIBE, _SUBACK = 1, 2, 3, 4, 8, 9


class Shared:
    """What a thousand devices need once. `up`: devices that are connected and subscribed; `tries`: to connect."""

    def __init__(self) -> None:
        self.up: set[str] = set()
        self.tries = self.updates = self.models = 0
        self.stopping = False
        self._parts = Receiver[int]("emo", Journal())
        self._known: tuple[bytes, GlobalModel | None] = b"", None
        shape = split_network.split_shape(MODEL)
        rng = np.random.default_rng(0)
        self.activations = Packed(rng.standard_normal((_SAMPLES, *shape)).astype(np.float32), "int2")
        self.labels = rng.integers(0, 10, _SAMPLES).astype("<i4")

    def read(self, topic: str, data: bytes) -> GlobalModel | None:
        """Every device gets these bytes; they are taken apart once."""
        if data != self._known[0]:
            message = self._parts.take(topic, data, 0)[0]
            self._known = data, message if isinstance(message, GlobalModel) else None
        return self._known[1]


class Device:
    def __init__(self, name: str, edge: str, port: int, shared: Shared) -> None:
        self._name, self._edge, self._port, self._shared = name, edge, port, shared
        self._numbers, self._asked = itertools.count(1), itertools.count(1)
        self._answered = 0
        self._first = random.uniform(0.5, 1.8)  # noqa: S311 - as emo/mqtt/client.py has it

    async def live(self) -> None:
        delay = self._first
        while not self._shared.stopping:
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                self._shared.tries += 1
                reader, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", self._port), 30)
                try:
                    await self._session(reader, writer)
                finally:
                    delay = self._first if self._name in self._shared.up else delay
                    self._shared.up.discard(self._name)
                    writer.transport.abort()
            await asyncio.sleep(delay)
            delay = min(2 * delay, 8 * self._first)

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        will = Status(self._name, "device", online=False)
        words = _text(topics.topic("emo", will)) + _sized(b"".join(frame.split(will, bytes(8), _CHUNK)))
        # Clean session, will of QoS 1, retained; keepalive 60 s.
        connect = _text("MQTT") + bytes([4, 0b00101110]) + (60).to_bytes(2, "big") + _text(self._name) + words
        writer.write(_packet(_CONNECT, 0, connect))
        filters = [
            topics.subscription("emo", GlobalModel),
            topics.subscription("emo", Refused, device=self._name),
        ]
        wanted = b"".join(_text(name) + b"\x01" for name in filters)
        while True:
            kind, flags, body = await asyncio.wait_for(_read(reader), 45)
            if kind == _CONNACK:
                if body[1]:
                    raise EOFError
                writer.write(_packet(_SUBSCRIBE, 2, self._number() + wanted))
                self._publish(writer, Status(self._name, "device", online=True, samples=_SAMPLES))
            elif kind == _SUBACK:
                self._shared.up.add(self._name)
            elif kind == _PUBLISH:
                size = int.from_bytes(body[:2], "big")
                at = 2 + size + (2 if flags & 0b110 else 0)
                if flags & 0b110:
                    writer.write(_packet(_PUBACK, 0, body[2 + size : at]))
                self._take(writer, body[2 : 2 + size].decode(), body[at:])
            await writer.drain()

    def _take(self, writer: asyncio.StreamWriter, topic: str, data: bytes) -> None:
        if "/global/" not in topic:
            return
        model = self._shared.read(topic, data)
        if model is None:
            return
        self._shared.models += 1
        if self._name not in model.devices:
            return
        if model.round > self._answered:
            self._answered = model.round
            for batch in range(_BATCHES):
                rows = self._shared.activations, self._shared.labels
                self._publish(writer, ActivationBatch(model.run, self._edge, self._name, batch, model.round, *rows))
            count = _BATCHES * next(self._asked)
            self._publish(writer, TapReport(model.run, self._edge, self._name, model.round, count, count))
        self._shared.updates += 1
        self._publish(writer, Update(model.run, self._name, model.round, _SAMPLES, 1.0, model.weights))

    def _number(self) -> bytes:
        return (1 + next(self._numbers) % 65_535).to_bytes(2, "big")

    def _publish(self, writer: asyncio.StreamWriter, message: Message) -> None:
        route, unlike = topics.ROUTES[type(message)], os.urandom(8)
        for index, data in enumerate(frame.split(message, unlike, _CHUNK)):
            body = _text(topics.topic("emo", message, index)) + self._number() + data
            writer.write(_packet(_PUBLISH, 0b010 | route.retain, body))


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


async def _read(reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
    first = (await reader.readexactly(1))[0]
    size = shift = 0
    while True:
        low = (await reader.readexactly(1))[0]
        size |= (low & 0x7F) << shift
        shift += 7
        if low < 0x80:
            return first >> 4, first & 0xF, await reader.readexactly(size)


def _packet(kind: int, flags: int, body: bytes) -> bytes:
    """MQTT 3.1.1: type, flags, length, body."""
    size, length = len(body), b""
    while True:
        size, low = divmod(size, 128)
        length += bytes([low | (0x80 if size else 0)])
        if not size:
            return bytes([kind << 4 | flags]) + length + body


def _text(value: str) -> bytes:
    return len(value).to_bytes(2, "big") + value.encode()
