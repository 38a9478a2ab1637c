"""A whole fleet on the in-memory network: the nodes that processes run, one thread, in a fixed order."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from links import Hears

from cloud_app.rounds.node import CloudNode
from cloud_app.rounds.state import begin
from device_app.node import DeviceNode
from edge_app.cache.disk import DiskCache
from edge_app.cache.replay_cache import ReplayCache
from edge_app.node import EdgeNode
from emo.config import CloudConfig, DeviceConfig, EdgeConfig, Model
from emo.data.dataset import Dataset
from emo.journal import Journal
from emo.models import split_network
from emo.runtime import agreement
from emo.wire.messages import (
    ActivationBatch,
    CannotTrain,
    GlobalHead,
    GlobalModel,
    Interval,
    Message,
    OverlayWeights,
    Refused,
    RunState,
    Status,
    TapReport,
    Unfit,
    Update,
)
from emo.wire.topics import ROUTES, subscription
from testbed.fleet.memory_network import MemoryChannel, Network

MODEL = Model(name="cnn", width=0.5, input=(1, 8, 8), classes=4)


def dataset(samples: int = 96, seed: int = 0) -> Dataset:
    """Four classes that differ in the lit quarter of the image; easy, and not trivial."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, samples)
    images = rng.integers(0, 120, (samples, 1, 8, 8)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        top, left = 4 * (label // 2), 4 * (label % 2)
        image[0, top : top + 4, left : left + 4] += 60
    flat = np.full(1, 64, np.float32)
    return Dataset(images, labels.astype(np.int64), tuple("abcd"), flat, flat)


class Fleet:
    """Two edges with 40 and 60 % of the devices; `journals` by node name."""

    def __init__(
        self,
        folder: Path,
        devices: int = 5,
        rounds: int = 3,
        tap: bool = True,
        model: Model = MODEL,
        prepare: bool = True,
        **cloud: object,
    ) -> None:
        """`prepare`: whether devices and edges try whether they can train, and say what they have."""
        self.network, self.now = Network(), 0.0
        self.journals: dict[str, Journal] = {}
        self.publish: dict[str, Callable[[Iterable[Message | None]], None]] = {}
        names = [f"device-{index}" for index in range(devices)]
        first = round(0.4 * devices)
        groups = {"edge-1": names[:first], "edge-2": names[first:]}
        values: dict[str, object] = {"rounds": rounds, "min_devices": devices, "per_round": devices - 1}
        config = CloudConfig.model_validate(
            {
                "model": model,
                "rounds": values | cloud,
                "training": {"lr": 0.05, "epochs": 2},
                "overlays": {"edges": list(groups), "wait_s": 5},
            }
        )
        self.globals: list[dict[str, np.ndarray]] = []
        start = split_network.weights(split_network.network(model, 1))
        facts = agreement.facts(model, split_network.split_shape(model), dataset(), network=start)
        self.cloud = CloudNode(config, begin(config, "run-1", start), self._journal("cloud"), facts=facts)
        self._join("cloud", self.cloud, [Status, Update, OverlayWeights, CannotTrain])
        self.edges, self.devices = {}, {}
        self._disks = []
        for edge, members in groups.items():
            settings = EdgeConfig.model_validate({"id": edge, "devices": members, "model": model})
            self._disks.append(DiskCache(folder / edge))
            cache = ReplayCache(self._disks[-1], 1 << 20, 0)
            self.edges[edge] = EdgeNode(settings, cache, self._journal(edge))
            if prepare:
                self.edges[edge].prepare()
            kinds = [RunState, GlobalHead, ActivationBatch, TapReport, Unfit]
            self._join(edge, self.edges[edge], kinds, edge=edge)
            for name in members:
                partition = {"devices": devices, "index": names.index(name), "scheme": "iid"}
                mine = DeviceConfig.model_validate(
                    {
                        "id": name,
                        "edge": edge,
                        "model": model,
                        "partition": partition,
                        "tap": {"enabled": tap},
                    }
                )
                self.devices[name] = DeviceNode(mine, dataset(), self._journal(name))
                if prepare:
                    self.devices[name].prepare()
                kinds = [GlobalModel, Refused, Interval, Unfit]
                self._join(name, self.devices[name], kinds, edge=edge, device=name)

    def _journal(self, name: str) -> Journal:
        return self.journals.setdefault(name, Journal())

    def _join(
        self, name: str, node: "CloudNode | EdgeNode | DeviceNode", kinds: list[type[Message]], **ids: str
    ) -> None:
        ids = {"member": name} | ids
        filters = [
            subscription("emo", kind, **{key: ids[key] for key in ids if f"{{{key}}}" in ROUTES[kind].topic})
            for kind in kinds
        ]
        channel = MemoryChannel(self.network, name, filters, self.journals[name], limits=node.limits())

        def handle(message: Message) -> None:
            if isinstance(message, GlobalModel) and message.round > len(self.globals):
                self.globals.append(dict(message.weights))
            publish(node.handle(message, self.now))

        def publish(messages: Iterable[Message | None]) -> None:
            for message in messages:
                if message is not None:
                    channel.publish(message)

        channel.start(Hears(handle, lambda: node.hello(online=True)))
        self.publish[name] = publish

    def run(self, steps: int = 20_000) -> "Fleet":
        """Until the cloud is done. Time passes only when nothing else happens."""
        for _ in range(steps):
            handled = self.network.pump()
            for edge, node in self.edges.items():
                if self.cloud.state.phase == "overlays":
                    self.publish[edge](node.work(self.now))
            self.publish["cloud"](self.cloud.tick(self.now))
            if self.cloud.done:
                break
            self.now += 0.05 if not handled else 0.0
        return self

    def close(self) -> None:
        for disk in self._disks:
            disk.close()
