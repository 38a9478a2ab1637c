"""The fleet of `emo chaos`: three brokers, the cloud, two edges, two hosts with half of the devices each, and an observer.

Every connection goes through a proxy. There is a WAN broker and one on each edge's LAN, and none of them keeps anything when it
ends.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from emo.config import CloudConfig, DeviceConfig, EdgeConfig, WatchConfig
from emo.config_file import parse
from emo.errors import BrokerError
from testbed.chaos.disk import Disk
from testbed.chaos.process import Process, Program, Tier
from testbed.chaos.proxy import Link, Proxy
from testbed.chaos.schedule import Targets
from testbed.processes import broker

EDGES = {"edge-1": "host-1", "edge-2": "host-2"}
HOSTILE_DEVICE, HOSTILE_EDGE = "hostile-device", "hostile-edge"
_WATCH = "watch"
_PER_ROUND = 4


@dataclass(frozen=True)
class Plan:
    """One run. `strict`: a round closes with the updates of all that were asked, or not at all; else stragglers are left
    out. `faults`: spread over `over_s` seconds, and so many acts of a `hostile` device and edge, which join the fleet where
    there are any. `devices`: an even number."""

    seed: int
    rounds: int
    faults: int
    over_s: float
    strict: bool
    devices: int = 6
    hostile: int = 0


class Fleet:
    """`tiers` and `brokers` by name, in the order in which they start; `links` by name, PROCESS-wan or PROCESS-lan; `ports` of
    the brokers. `hostile`: what the cloud and edge-1 take the hostile device for, where the plan has one."""

    def __init__(self, plan: Plan, folder: Path, proxy: Proxy, own_disks: bool) -> None:
        """Writes every configuration below `folder`; starts nothing. Raises BrokerError without Mosquitto."""
        binary = broker.mosquitto()
        if binary is None:
            raise BrokerError("Mosquitto is not installed: on Debian and Ubuntu, apt-get install mosquitto")
        self.folder, self._plan = folder, plan
        self.brokers: dict[str, Process] = {}
        self.links: dict[str, Link] = {}
        self.tiers: dict[str, Tier] = {}
        self.ports = ports = dict[str, int]()
        for name in ("broker", *(f"broker-{edge[-1]}" for edge in EDGES)):
            # Below those that the system gives to clients: a broker that comes back finds its own free.
            ports[name] = broker.free_port(range(20_000, 30_000))
            self.brokers[name] = _mosquitto(binary, name, folder, ports[name])
        names = ["cloud", *EDGES, *EDGES.values(), _WATCH]
        self.disks = {name: Disk(folder / name, own_disks) for name in names}
        for name in names:
            self.links[f"{name}-wan"] = proxy.link(f"{name}-wan", ports["broker"])
            if name not in {"cloud", _WATCH}:
                self.links[f"{name}-lan"] = proxy.link(f"{name}-lan", ports[f"broker-{name[-1]}"])
        self.cloud = parse(CloudConfig, self._cloud(), "cloud", {})
        self.edges = {edge: parse(EdgeConfig, self._edge(edge), edge, {}) for edge in EDGES}
        self.devices = {
            name: parse(DeviceConfig, self._device(edge, name), name, {})
            for edge in EDGES
            for name in self._members(edge)
        }
        self.hostile: DeviceConfig | None = None
        if plan.hostile:
            self.hostile = parse(DeviceConfig, self._device("edge-1", HOSTILE_DEVICE), HOSTILE_DEVICE, {})
        self.watch = parse(WatchConfig, self._watch(), _WATCH, {})
        self._tier("cloud", "cloud", self.cloud)
        for edge, host in EDGES.items():
            self._tier(edge, "edge", self.edges[edge])
            self._tier(host, "device", *(self.devices[name] for name in self._members(edge)))
        self._tier(_WATCH, "watch", self.watch)

    def processes(self) -> dict[str, Process]:
        return {**self.brokers, **self.tiers}

    def targets(self) -> Targets:
        return Targets(list(self.processes()), list(self.tiers), list(self.links))

    def states(self) -> Iterator[tuple[str, Path]]:
        """(node, its state_dir)."""
        for name, config in [("cloud", self.cloud), *self.edges.items(), *self.devices.items()]:
            yield name, config.state_dir
        yield _WATCH, self.watch.state_dir

    def rounds(self) -> int:
        """Closed so far."""
        path = self.cloud.state_dir / "events.jsonl"
        return path.read_bytes().count(b'"event": "round"') if path.exists() else 0

    def _members(self, edge: str) -> list[str]:
        """Its devices: one half."""
        half = self._plan.devices // len(EDGES)
        first = list(EDGES).index(edge) * half
        return [f"device-{index}" for index in range(first, first + half)]

    def _tier(self, name: str, command: str, *configs: CloudConfig | EdgeConfig | DeviceConfig | WatchConfig) -> None:
        paths = []
        for config in configs:
            paths.append(self.folder / f"{config.id}.yaml")
            text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
            paths[-1].write_text(text, encoding="utf-8")
        self.tiers[name] = Tier(name, self.folder, [command, "--config", *map(str, paths)])

    def _ways(self, process: str) -> dict[str, Any]:
        return {
            way: {"port": self.links[f"{process}-{way}"].port, "keepalive_s": 5}
            for way in ("wan", "lan")
            if f"{process}-{way}" in self.links
        }

    def _watch(self) -> dict[str, Any]:
        return {"id": _WATCH, "state_dir": str(self.folder / _WATCH / "state"), "port": 0, **self._ways(_WATCH)}

    def _shared(self, name: str, process: str) -> dict[str, Any]:
        norm = "batch" if self._plan.hostile else "group"  # its counters and variances can be lied about
        model = {"name": "cnn", "width": 0.5, "norm": norm, "input": [1, 8, 8], "classes": 10}
        where = self.folder / process / ("" if name == process else name)
        return {"id": name, "model": model, "state_dir": str(where / "state"), **self._ways(process)}

    def _cloud(self) -> dict[str, Any]:
        plan = self._plan
        asked = plan.devices + 1 if plan.hostile else _PER_ROUND  # it is to have its say in every round
        edges = [*EDGES, HOSTILE_EDGE] if plan.hostile else list(EDGES)
        patience = {"quorum": 1.0, "deadline_s": 120} if plan.strict else {"quorum": 0.5, "deadline_s": 4}
        return {
            **self._shared("cloud", "cloud"),
            "rounds": {
                "rounds": plan.rounds,
                "per_round": asked,
                "min_devices": plan.devices if plan.strict else _PER_ROUND,
                "give_up_s": 600,
                "seed": plan.seed,
                **patience,
            },
            "training": {"lr": 0.05, "epochs": 2},
            "overlays": {"edges": edges, "start_s": 10, "wait_s": 120},
            "export": {"models": str(self.folder / "cloud" / "models")},
        }

    def _edge(self, edge: str) -> dict[str, Any]:
        return {
            **self._shared(edge, edge),
            "devices": self._members(edge) + [HOSTILE_DEVICE] * (self._plan.hostile > 0 and edge == "edge-1"),
            "cache": {"dir": str(self.folder / edge / "cache")},
            "overlay": {
                "replay_ratio": 2.0,
                "checkpoint_steps": 20,
                "seed": self._plan.seed,
                "patience_s": 1.0,
                "finish_s": 60,
            },
        }

    def _device(self, edge: str, name: str) -> dict[str, Any]:
        index = self._plan.devices if name == HOSTILE_DEVICE else int(name.rpartition("-")[2])
        return {
            **self._shared(name, EDGES[edge]),
            "edge": edge,
            "partition": {"devices": self._plan.devices + (self._plan.hostile > 0), "index": index},
        }


def _mosquitto(binary: str, name: str, folder: Path, port: int) -> Program:
    text = broker.CONFIGURATION.format(port=port)
    if sys.platform == "linux" and os.geteuid() == 0:
        text += "user root\n"  # it would become another user, who may outlive us
    path = folder / f"{name}.conf"
    path.write_text(text, encoding="utf-8")
    return Program(name, folder, [binary, "-c", str(path)])
