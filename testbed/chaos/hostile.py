"""A device and an edge that belong to the fleet and lie, for `emo chaos --hostile`.

Between its acts the device takes part in federated learning with labels turned round, so that its updates pass for
honest. The acts go straight to the brokers, past our own checks on what may be sent:

    report    a TapReport of 2**53 - 1 batches               counter   an update with absurd batch norm buffers
    overlay   an overlay that is none, or a harmful one      tensors   tens of thousands of empty tensors, 1 GiB announced
    bomb      4,096 equal samples in a few kilobytes         poison    turned labels, huge activations, many batch ids
    samples   an update that claims 2**24 - 1 samples        toggle    2,000 statuses, online and offline in turn
    inject    line breaks, escape codes and a megabyte of text in names, ids and headers
    gossip    a flood of reports, events and histories to observers, of strangers and in the cloud's name, absurd in all that is free

The edge answers the end of the run with an overlay of negated weights, fifty times as large.
"""

import dataclasses
import itertools
import json
import queue
import random
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from device_app.node import DeviceNode
from emo.config import Broker, DeviceConfig
from emo.data import registry
from emo.journal import Journal
from emo.models import split_network
from emo.mqtt import client as mqtt_client
from emo.wire import codec, frame, topics
from emo.wire.codec import Packed
from emo.wire.messages import (
    ActivationBatch,
    Event,
    GlobalModel,
    Message,
    OverlayWeights,
    Report,
    RunHistory,
    RunState,
    Status,
    TapReport,
    Update,
    Weights,
)
from emo.wire.receiver import Receiver
from emo.wire.topics import subscription
from testbed.chaos.schedule import Act

_MOST = 2**53 - 1
_CHUNK = 200 << 10
_UGLY = "x\n2026-01-01 00:00:00 WARNING emo: all is well\x1b[2J\x1b[31m"
_STOP_S = 20.0
_FULL = 15  # paho's MQTT_ERR_QUEUE_SIZE


class Hostile:
    """`sent`: by round, each update that a cloud may have counted, oldest first. `failed`: why an act could not be done.

    Raises EmoError as DeviceNode does."""

    def __init__(self, device: DeviceConfig, edge: str, wan_port: int, lan_port: int, seed: int) -> None:
        self.failed = ""
        self.sent = defaultdict[int, list[Weights]](list)
        self._config, self._edge = device, edge
        train, _ = registry.load(device.data)
        turned = dataclasses.replace(train, labels=len(train.classes) - 1 - train.labels)
        self._node = DeviceNode(device, turned, Journal())
        self._rng = random.Random(f"emo-hostile-{seed}")  # noqa: S311 - to be repeated, not to be secret
        self._model: GlobalModel | None = None
        self._next = queue.SimpleQueue[Act]()  # what the next update is to be
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._numbers = itertools.count(self._rng.getrandbits(48))
        self._stopping = False
        self._acts: dict[Act, Callable[[float], None]] = {
            "report": self._report,
            "counter": lambda _: self._next.put("counter"),
            "overlay": self._overlay,
            "tensors": self._tensors,
            "bomb": self._bomb,
            "poison": self._poison,
            "samples": lambda _: self._next.put("samples"),
            "toggle": self._toggle,
            "inject": self._inject,
            "gossip": self._gossip,
        }
        self._receiver = Receiver[int]("emo", Journal())
        wan = Broker(port=wan_port, keepalive_s=5)
        lan, will = wan.model_copy(update={"port": lan_port}), self._node.hello(online=False)
        self._wan = mqtt_client.make(wan, "emo-hostile-wan", mqtt_client.V5, will, None)
        self._lan = mqtt_client.make(lan, "emo-hostile-lan", mqtt_client.V5, None, None)
        self._wan.on_connect = self._on_connect
        self._wan.on_message = self._on_message
        self._thread = threading.Thread(target=self._run, name="hostile", daemon=True)

    def start(self) -> None:
        self._thread.start()
        for client in (self._wan, self._lan):
            client.loop_start()

    def act(self, act: Act, variant: float) -> None:
        """Soon, on a thread of its own. `variant`: 0 to 1, which of the act's forms."""
        self._work.put(lambda: self._acts[act](variant))

    def stop(self) -> None:
        self._stopping = True
        self._work.put(None)
        self._thread.join(_STOP_S)
        for client in (self._wan, self._lan):
            client.disconnect()
            client.loop_stop()
        self._node.close()

    # -- what it hears

    def _on_connect(self, client: Any, *_: object) -> None:
        for name in (subscription("emo", GlobalModel), subscription("emo", RunState)):
            client.subscribe(name, qos=1)
        self._work.put(self._hello)

    def _hello(self) -> None:
        self._send(self._node.hello(online=True))
        self._send(Status(self._edge, "edge", online=True))

    def _on_message(self, client: Any, _data: Any, packet: Any) -> None:
        message, mids = self._receiver.take(packet.topic, bytes(packet.payload), packet.mid)
        for mid in mids:
            client.ack(mid, 1)
        if isinstance(message, GlobalModel):
            self._work.put(lambda: self._round(message))
        elif isinstance(message, RunState) and message.phase == "finishing":
            self._work.put(lambda: self._overlay(1.0))

    def _run(self) -> None:
        torch.set_num_threads(1)
        while (work := self._work.get()) is not None and not self._stopping:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - a lie that cannot be told is a fault of the test
                self.failed = f"{type(error).__name__}: {error}"

    def _round(self, model: GlobalModel) -> None:
        self._model = model
        for message in self._node.handle(model, 0.0):
            if isinstance(message, Update):
                update = self._changed(message)
                self.sent[model.round].append(update.weights)
                self._send(update)
            elif message is not None:
                self._send(message)

    def _changed(self, update: Update) -> Update:
        if self._next.empty():
            return update
        if self._next.get() == "samples":
            return dataclasses.replace(update, samples=2**24 - 1)
        weights = {name: array.copy() for name, array in update.weights.items()}
        for name, array in weights.items():
            if name.endswith("num_batches_tracked"):
                array[...] = _MOST
            elif name.endswith("running_var") and self._rng.random() < 0.5:
                array[...] = -5
        return dataclasses.replace(update, weights=weights)

    # -- what it does

    def _report(self, variant: float) -> None:
        sent = _MOST if variant < 0.5 else 0
        self._send(self._mine(TapReport, round=1, attempted=_MOST, sent=sent))

    def _overlay(self, variant: float) -> None:
        net = split_network.overlay(self._config.model, 0)
        weights: dict[str, np.ndarray] = dict(split_network.weights(net))
        first = next(iter(weights))
        if variant < 0.25:
            weights[first] = np.zeros((3, 3), np.float32)
        elif variant < 0.5:
            weights = {name: np.full_like(a, 3e38 if a.dtype.kind == "f" else 1) for name, a in weights.items()}
        elif variant < 0.75:
            weights = {"other": np.zeros(4, np.int8)}
        else:
            weights = {name: -50 * a if a.dtype.kind == "f" else a for name, a in weights.items()}
        steps = _MOST if variant < 1.0 else 1000
        self._send(OverlayWeights(self._run_id, self._edge, steps, _MOST, _MOST, weights))

    def _tensors(self, variant: float) -> None:
        names = {f"{number:x}": np.zeros(0, np.float32) for number in range(30_000)}
        frames = list(self._frames(self._update(names)))
        if variant < 0.5:  # says that a gigabyte will come
            head = frame.HEAD.pack(b"EMO", 2, frame.KINDS.index(Update), self._number(), 0, 8192, 1 << 30, 0)
            piece = bytes(_CHUNK - frame.OVERHEAD)
            frames = [head + zlib.crc32(piece, zlib.crc32(head)).to_bytes(4, "little") + piece]
        self._send_frames(Update, frames)

    def _bomb(self, _variant: float) -> None:
        shape = (4096, *split_network.split_shape(self._config.model))
        packed = Packed(codec.encode(np.zeros(shape, np.float32), "fp32"))
        self._batch(self._rng.randrange(4096), 1 << 20, packed, np.zeros(4096, np.int32))

    def _poison(self, variant: float) -> None:
        scale = (1.0, 1e6, 3e38)[int(variant * 3) % 3]
        rng = np.random.default_rng(self._rng.getrandbits(32))
        shape = (16, *split_network.split_shape(self._config.model))
        for number in range(20):
            rows = np.minimum(rng.random(shape) * scale, 3e38).astype(np.float32)
            labels = rng.integers(0, self._config.model.classes, 16).astype(np.int32)
            version = 1 + number if self._model is None else 2 * self._model.round + number % 2
            self._batch(self._rng.randrange(500), version, Packed(codec.encode(rows, "fp32")), labels)

    def _batch(self, number: int, version: int, packed: Packed, labels: np.ndarray) -> None:
        self._send(self._mine(ActivationBatch, batch=number, version=version, activations=packed, labels=labels))

    def _toggle(self, _variant: float) -> None:
        for number in range(2000):
            self._send(Status(self._config.id, "device", online=number % 2 == 1, samples=number))
        self._hello()

    def _inject(self, variant: float) -> None:
        long = _UGLY + "y" * (1 << 20) * (variant < 0.3)
        self._send(self._update({long: np.zeros(1, np.float32)}))
        self._publish(Update, self._header([self._run_id, long, 1, 1, 1, {long: long}, "fp32"]))
        self._packet(topics.ROUTES[Update], f"emo/wan/status/{self._config.id}/0", long.encode())
        self._publish(TapReport, self._header([long, _UGLY, _UGLY, -1, 1e400, None]))

    def _gossip(self, _variant: float) -> None:
        figures: dict[str, float] = {_UGLY[:64]: 1e308, "sent_bytes.Update": -_MOST, "train.round": _MOST}
        fields: dict[str, Any] = {
            "round": _MOST,
            "accuracy": -1e308,
            "of": None,
            "devices": [_UGLY] * 20,
            _UGLY[:64]: {_UGLY[:64]: _UGLY},
        }
        for number in range(300):
            node = "cloud" if number % 3 else f"stranger-{self._rng.randrange(10**9)}"
            name = self._rng.choice(["round", "opened", "counted", "exported", "begun", "problem", _UGLY[:64]])
            self._send(Report(node, "device", "none", -1e308, "", _UGLY[:64], _UGLY, figures, "z" * 64))
            self._send(Event(node, "edge", self._rng.randrange(_MOST), 1e308, name, fields))
        row = (2**31 - 1, -1e308, 1e308, -1.0, _MOST, 0, _MOST, _MOST)
        self._send(RunHistory("none", 0, (row,) * 1000, {_UGLY[:64]: -1e308}))

    # -- how it sends

    @property
    def _run_id(self) -> str:
        return self._model.run if self._model is not None else "none"

    def _mine(self, kind: type, **fields: object) -> Any:
        return kind(run=self._run_id, edge=self._config.edge, device=self._config.id, **fields)

    def _update(self, weights: Weights) -> Update:
        number = self._model.round if self._model is not None else 1
        return Update(self._run_id, self._config.id, number, 90, 1.0, weights)

    def _number(self) -> bytes:
        return (next(self._numbers) & (2**64 - 1)).to_bytes(8, "little")

    def _frames(self, message: Message) -> Iterator[bytes]:
        return frame.split(message, self._number(), _CHUNK)

    def _send(self, message: Message) -> None:
        route = topics.ROUTES[type(message)]
        for index, packet in enumerate(self._frames(message)):
            self._packet(route, topics.topic("emo", message, index), packet)

    def _header(self, fields: list[object]) -> bytes:
        """A payload that is nothing but this header."""
        header = json.dumps(fields).encode()
        return len(header).to_bytes(4, "little") + header

    def _publish(self, kind: type[Message], payload: bytes) -> None:
        """As a message of `kind`, whatever it is."""
        self._send_frames(kind, frame.cut(frame.KINDS.index(kind), payload, self._number(), _CHUNK))

    def _send_frames(self, kind: type[Message], frames: Iterable[bytes]) -> None:
        ids = {"device": self._config.id, "edge": self._config.edge or ""}
        route = topics.ROUTES[kind]
        for packet in frames:
            self._packet(route, "emo/" + route.topic.format_map(ids), packet)

    def _packet(self, route: topics.Route, name: str, packet: bytes) -> None:
        client = self._wan if route.link == "wan" else self._lan
        while client.publish(name, packet, qos=1, retain=route.retain).rc == _FULL and not self._stopping:
            time.sleep(0.001)
