"""A thousand devices on one machine: do rounds complete, does the cloud stay small, is a connect storm absorbed?

    python -m bench.scale [--json FILE] [--devices 10 1000]

Real: Mosquitto, `emo cloud`, two `emo edge`. The devices are connections, one thread carries them all: each says it is
here, takes every global model (its own copy, as a subscriber gets it), and, when it is asked, sends an update and two
activation batches in real frames. They train nothing. In the middle of the run the broker is killed and started
again on its port, keeping nothing: every device connects again as a real one does (a first try after its own 0.5 to 1.8
seconds, then twice as long each time, up to eight times), subscribes, says it is here and takes the retained model again.

`connect_s` and `storm_s`: until every device is connected and subscribed, from the first try and from the broker's new
start. `storm_round_s`: from that start until the next round is closed. `cloud_mib`: the cloud's memory (RSS) when half
of the rounds are over, `cloud_peak_mib` the most it ever had (VmHWM), before the export.
"""

import asyncio
import contextlib
import json
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from bench.light import MODEL, Device, Shared
from emo.errors import BrokerError
from testbed import figures
from testbed.chaos.process import Program
from testbed.processes import broker

_ROUNDS, _PER_ROUND = 30, 10
_EDGES = ("edge-1", "edge-2")
_WAIT_S = 240.0


class Backbone:
    """Broker, cloud and edges as processes; `devices`: names."""

    def __init__(self, folder: Path, devices: list[str]) -> None:
        binary = broker.mosquitto()
        if binary is None:
            raise BrokerError("Mosquitto is not installed: on Debian and Ubuntu, apt-get install mosquitto")
        self.port, self.folder = broker.free_port(range(20_000, 30_000)), folder  # below what clients get
        conf = folder / "mosquitto.conf"
        conf.write_text(broker.CONFIGURATION.format(port=self.port) + "user root\n", encoding="utf-8")
        self.broker = Program("broker", folder, [binary, "-c", str(conf)])
        half = round(0.4 * len(devices))
        self.groups = {"edge-1": devices[:half], "edge-2": devices[half:]}
        shared = {"model": MODEL.model_dump(mode="json"), "wan": {"port": self.port}}
        self.cloud = self._tier(
            "cloud",
            {
                **shared,
                "rounds": {"rounds": _ROUNDS, "per_round": _PER_ROUND, "min_devices": len(devices)},
                "overlays": {"edges": list(_EDGES), "wait_s": 60},
                "export": {"models": str(folder / "models")},
            },
        )
        self.edges = [
            self._tier(
                edge,
                {
                    **shared,
                    "lan": {"port": self.port},
                    "devices": self.groups[edge],
                    "cache": {"dir": str(folder / edge / "cache")},
                },
            )
            for edge in _EDGES
        ]

    def _tier(self, name: str, values: dict[str, Any]) -> Program:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"id": name, "state_dir": str(self.folder / name), **values}))
        command = [sys.executable, "-m", "emo.cli", name.partition("-")[0], "--config", str(path)]
        return Program(name, self.folder, command)

    def rounds(self) -> int:
        path = self.folder / "cloud" / "events.jsonl"
        return path.read_bytes().count(b'"event": "round"') if path.exists() else 0


async def run(count: int, folder: Path) -> dict[str, Any]:
    """One run with `count` devices."""
    names = [f"device-{index:04d}" for index in range(count)]
    base, shared = Backbone(folder, names), Shared()
    processes = [base.broker, base.cloud, *base.edges]
    for process in processes:
        process.start()
    tasks = []
    try:
        began = time.monotonic()
        for edge, members in base.groups.items():
            tasks += [asyncio.create_task(Device(name, edge, base.port, shared).live()) for name in members]
        connect_s = await _until(lambda: len(shared.up) == count, began, base)
        await _until(lambda: base.rounds() >= _ROUNDS // 2, began, base)
        memory = psutil.Process(base.cloud.pid).memory_info().rss
        base.broker.send(signal.SIGKILL)
        base.broker.wait(10)
        await asyncio.sleep(2)
        # A round that was closed just before may be told of only now.
        before, tries, shared.up = base.rounds(), shared.tries, set()
        base.broker.start()
        began = time.monotonic()
        storm_s = await _until(lambda: len(shared.up) == count, began, base)
        storm_tries = shared.tries - tries
        round_s = await _until(lambda: base.rounds() > before, began, base)
        await _until(lambda: base.rounds() == _ROUNDS, began, base)
        peak = _peak(base.cloud.pid)
        await _until(lambda: not base.cloud.alive(), began, base)
        return {
            "devices": count,
            "rounds": base.rounds(),
            "finished": base.cloud.status() == 0,
            "connect_s": round(connect_s, 1),
            "storm_s": round(storm_s, 1),
            "storm_tries": storm_tries,
            "storm_round_s": round(round_s, 1),
            "cloud_mib": round(memory / 2**20, 1),
            "cloud_peak_mib": round(peak / 2**20, 1),
            "updates": shared.updates,
            "models_taken": shared.models,
        }
    finally:
        shared.stopping = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for process in reversed(processes):
            process.stop(20)


async def _until(reached: Any, began: float, base: Backbone) -> float:
    """Seconds from `began` until `reached()`. Raises TimeoutError with the cloud's last words."""
    while not reached():
        if time.monotonic() - began > _WAIT_S or base.cloud.status() not in {None, 0}:
            raise TimeoutError(base.cloud.log.read_text(errors="replace")[-1000:])
        await asyncio.sleep(0.05)
    return time.monotonic() - began


def _peak(pid: int) -> int:
    """VmHWM of a process, in bytes; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    parser = figures.parser(__doc__)
    parser.add_argument("--devices", type=int, nargs="+", default=[10, 1000], help="a run with each")
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for the broker too: two a device and some
    runs = []
    for count in args.devices:
        with tempfile.TemporaryDirectory(prefix="emo-scale-") as folder:
            runs.append(asyncio.run(run(count, Path(folder))))
        print(json.dumps(runs[-1]), flush=True)
    figures.write(args.json, runs)


if __name__ == "__main__":
    main()
