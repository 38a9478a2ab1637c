"""How fast an edge takes activations in: over a real broker, decoded, scored (SVCCA), stored, answered.

    python -m bench.ingest [--json FILE] [--seconds 10]

The edge is `emo edge` in a process of its own, on one core (`idle`), then beside its own training without a pause, on
two (`training`); the device that feeds it and the broker have the first core. The device sends versions of the same
batches, a delta where the codec makes one, encoded beforehand, and has at most 24 without an answer. MB/s are of raw
fp32 activations in batches that were answered, so stored, within the window; training then goes on alone, and
`trainer_slowdown` is its steps a second alone over those while activations came.
"""

import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import yaml

from emo.config import DELTA, Broker, Codec, Model, Tap
from emo.journal import Journal
from emo.models import split_network
from emo.models.split_network import inference
from emo.mqtt.channel import MqttChannel
from emo.runtime.channel import Listener
from emo.wire.codec import Packed
from emo.wire.messages import ActivationBatch, Interval, Message, RunState, TapReport
from emo.wire.topics import subscription
from testbed import figures
from testbed.processes.broker import LocalBroker
from testbed.processes.child import Child

_RUN, _EDGE, _DEVICE = "ingest", "edge-1", "device-1"
_BATCHES, _SAMPLES, _OPEN = 48, 16, 24
_EDGE_PROGRAM = (
    "import os, sys; os.sched_setaffinity(0, eval(sys.argv[1]));from emo.cli import main; sys.exit(main(sys.argv[2:]))"
)


class Case(NamedTuple):
    """`input`: of the model, so that its split is the shape that is wanted."""

    name: str
    model: Model
    codec: Codec


def cases() -> list[Case]:
    mobilenet = Model(name="mobilenet6", input=(3, 32, 32))
    vgg = Model(name="vgg6", input=(3, 32, 32))
    default: Codec = Tap().codec
    codecs: list[Codec] = [default, *[c for c in ("fp16", "int4-delta", "int2-delta") if c != default]]
    return [Case("mobilenet", mobilenet, codec) for codec in codecs] + [Case("vgg", vgg, default)]


def main() -> None:
    parser = figures.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each window")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})  # the broker, our child, inherits it
    rows = []
    for case in cases():
        rows.append(_case(case, cores, args.seconds))
        figures.line(rows[-1], "  ")
    first = rows[0]
    summary = {
        "MBps_fp32": {"idle": first["idle"], "training": first["training"]},
        "trainer_slowdown": first["trainer_slowdown"],
        "codec": first["codec"],
        "cases": rows,
    }
    figures.write(args.json, summary)


def _case(case: Case, cores: list[int], seconds: float) -> dict[str, Any]:
    versions = _versions(case)
    nbytes = 4 * _SAMPLES * int(np.prod(split_network.split_shape(case.model)))
    row: dict[str, Any] = {"case": case.name, "codec": case.codec, "batch_bytes": nbytes}
    with tempfile.TemporaryDirectory() as name, LocalBroker(Path(name)) as broker:
        for mode in ("idle", "training"):
            folder = Path(name) / mode
            with _Fleet(case, mode, broker.config, folder, {cores[-1]} if mode == "idle" else set(cores)) as fleet:
                fleet.send(versions, 1.0)  # warm: every batch has a version to be compared with
                before = fleet.steps()
                answered, took = fleet.send(versions, seconds)
                row[mode] = round(answered * nbytes / took / 1e6, 1)
                if mode == "training":
                    beside = fleet.rate(before)
                    time.sleep(6)  # what the last counters still mix
                    before = fleet.steps()
                    time.sleep(max(seconds, 11))
                    row["trainer_slowdown"] = round(fleet.rate(before) / beside, 2)
    return row


def _versions(case: Case) -> list[list[Packed]]:
    """For each of the batches two versions that take turns, encoded; a delta is against the other one."""
    parts = split_network.network(case.model, 0)
    random = torch.Generator().manual_seed(0)
    out = []
    with inference(parts):
        for _ in range(_BATCHES):
            images = torch.rand((_SAMPLES, *case.model.input), generator=random)
            arrays = [
                parts.trunk(images + 0.1 * k * torch.rand(images.shape, generator=random)).numpy() for k in (0, 1)
            ]
            full = [Packed(array, case.codec) for array in arrays]
            for each in full:
                each.data()
            pair = [Packed(array, case.codec, base) for array, base in zip(arrays, full[::-1], strict=True)]
            out.append(
                [
                    Packed(each.data())
                    for each in (
                        [full[0], pair[1], pair[0]] if case.codec.endswith(DELTA) else [full[0], full[1], full[0]]
                    )
                ]
            )
    return out


class _Fleet(Listener):
    """The edge as a process; cloud and device are this one."""

    def __init__(self, case: Case, mode: str, broker: Broker, folder: Path, cores: set[int]) -> None:
        folder.mkdir()
        self._state, self._trains = folder / "state", mode == "training"
        config = {
            "id": _EDGE, "devices": [_DEVICE], "state_dir": str(self._state),
            "wan": broker.model_dump(), "lan": broker.model_dump(),
            "model": case.model.model_dump(mode="json"), "cache": {"dir": str(folder / "cache")},
            "overlay": {"replay_ratio": 1e9 if self._trains else 1e-9},
        }  # fmt: skip
        path = folder / "edge.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        command = [sys.executable, "-c", _EDGE_PROGRAM, repr(cores), "edge", "--config", str(path)]
        self._child, self._log = Child(command, folder / "log"), folder / "log"
        self._answers = threading.Semaphore(_OPEN)
        self._answered = self._version = 0
        filters = [subscription(broker.root, Interval, edge=_EDGE, device=_DEVICE)]
        self._channel = MqttChannel(broker, f"bench-{mode}", filters, Journal())

    def __enter__(self) -> Self:
        self._channel.start(self)
        self._channel.wait_connected(10)
        self._channel.publish(RunState(_RUN, 1, 2**20, "training"))
        until = time.monotonic() + 60
        while not (self._state / "events.jsonl").exists() or '"run"' not in (self._state / "events.jsonl").read_text():
            if self._child.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the edge does not start: {self._log.read_text()[-500:]}")
            time.sleep(0.1)
        if self._trains:  # its budget counts what devices tried to send
            self._channel.publish(TapReport(_RUN, _EDGE, _DEVICE, 1, 2**40, 0))
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.stop(0)
        self._child.stop(10)

    def handle(self, message: Message) -> None:
        if isinstance(message, Interval):
            self._answered += 1
            self._answers.release()

    def send(self, versions: list[list[Packed]], seconds: float) -> tuple[int, float]:
        """(batches answered, seconds), once every batch has been sent and `seconds` have passed."""
        labels = np.arange(_SAMPLES, dtype="<i4") % 10
        began, before = time.perf_counter(), self._answered
        while time.perf_counter() - began < seconds or self._version < 1:
            for batch, coded in enumerate(versions):
                packed = coded[0] if self._version == 0 else coded[1 + (self._version + 1) % 2]
                if not self._answers.acquire(timeout=20):
                    raise SystemExit(f"the edge answers no more: {self._log.read_text()[-500:]}")
                self._channel.publish(ActivationBatch(_RUN, _EDGE, _DEVICE, batch, self._version, packed, labels))
            self._version += 1
        return self._answered - before, time.perf_counter() - began

    def steps(self) -> tuple[int, float]:
        """Steps of training as last told, and when that was (seconds)."""
        path = self._state / "metrics.json"
        if not path.exists():
            return 0, time.time()
        return json.loads(path.read_text()).get("overlay.steps", 0), path.stat().st_mtime

    def rate(self, since: tuple[int, float]) -> float:
        """Steps a second since then, by counters at least 5 seconds apart."""
        while True:
            steps, at = self.steps()
            if at - since[1] >= 4 and steps > since[0]:
                return (steps - since[0]) / (at - since[1])
            time.sleep(0.2)


if __name__ == "__main__":
    main()
