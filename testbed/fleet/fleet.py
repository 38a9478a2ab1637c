"""Federated learning over a simulated fleet, with overlays (emo) or without (fl-small, fl-large).

The nodes are those that a fleet runs: the cloud's here (cloud.py), devices and edges in worker processes (worker.py).

A round leaves nothing behind until it is over. So one whose worker has died is done again: the edges go on from where
they were after the round before, and of the devices nothing has changed yet.

    FOLDER/devices/ID      what a device keeps and the intervals that wait for it; of those that were ever sampled
    FOLDER/edge-N/         edge.py
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import safetensors.numpy
from pydantic import BaseModel, Field

from emo import snapshot_file
from emo.config import Id, Section
from emo.data.dataset import Dataset
from emo.data.registry import must_fit
from emo.errors import ConfigError, DataError
from emo.models import split_network
from emo.models.state import layout
from emo.wire.messages import OverlayWeights, Weights
from testbed import checkpoint, evaluation, node_configs
from testbed.fleet import messages
from testbed.fleet.cloud import Cloud
from testbed.fleet.edge import mirror
from testbed.fleet.worker import Worker
from testbed.plan import DeviceWork, Plan, RoundTime, RoundWork
from testbed.timing import costs, estimate
from testbed.timing.round_time import round_time, until_closed
from testbed.timing.scenario import Scenario
from testbed.workers import packets
from testbed.workers.messages import Request
from testbed.workers.packets import Packet, Sender
from testbed.workers.pool import Job, Pool
from testbed.workers.shared_memory import SharedData

_FILE, _KIND = "fleet.safetensors", "simulated fleet"
_DEVICE, _LIMIT = "simulated device", 1 << 30  # bytes of what one device keeps

T = TypeVar("T")
A = TypeVar("A")


class _State(Section):
    """`done`: rounds that are over; `now`: virtual seconds since the first was opened; `devices`: whose files belong
    to it."""

    done: Annotated[int, Field(ge=0)]
    now: Annotated[float, Field(ge=0)]
    devices: tuple[Id, ...]


class _Waiting(BaseModel):
    """Topics of the intervals that wait for a device; their frames are arrays `0`, `1`, ... beside its `state`."""

    topics: list[str]


class Fleet:
    """As plan.Method. `folder`: empty, for what does not fit in memory.

    What `save` and a lost worker do not keep: in which order a cache whose `budget_mib` is full would evict, where two
    devices hold the same number of bytes, or by fifo and lowest-loss. Without a budget nothing is lost.
    """

    def __init__(
        self,
        plan: Plan,
        scenario: Scenario,
        training: Dataset,
        test: Dataset,
        workers: int,
        folder: Path,
        device: str = "cpu",
    ) -> None:
        """`device`: torch's; on another than cpu the devices of a round train together (gpu_devices.py).

        Raises ConfigError, DataError, ModelError, PartitionError on what does not fit.
        """
        if plan.method == "emo" and plan.overlay.budget == "time":
            raise ConfigError("overlay.budget: `time` trains for as long as a clock says; simulate with `ratio`")
        must_fit(training, plan.model)
        self._plan, self._scenario, self._test, self._folder = plan, scenario, test, folder
        self._cost, self._net = costs.of(plan.model), node_configs.network(plan)
        shares = node_configs.shares(plan, training.labels)
        self._samples = [len(rows) for rows in shares]
        self._layout = layout(self._net, plan.model.input)
        self._deadline_s = estimate.deadline(plan, scenario, max(self._samples))
        self._cloud = self._at(1, split_network.weights(self._net), 0.0)
        self._edges = range(len(plan.edges)) if plan.method == "emo" else range(0)
        self._done = 0
        self._open: int | None = None  # pool's `restarts` when the workers had the edges as after round `_done`
        self._devices = folder / "devices"
        self._devices.mkdir(parents=True, exist_ok=True)
        self._pool = Pool(Worker, (plan, SharedData(training, shares), folder, device), workers)
        self._together = device != "cpu"

    def round(self, number: int) -> tuple[RoundWork, RoundTime]:
        """Raises QuorumError where too few updates come, EmoError where workers die again and again."""
        assert number == self._done + 1
        plan, cloud = self._plan, self._cloud
        sampled = node_configs.sampled(plan, number)
        model, told, head = cloud.model, [*cloud.run_state, *cloud.head], cloud.head
        trained, answers, steps = self._again(lambda: self._train(number, sampled, model, told))
        drops = {device: self._scenario.drops(plan, number, device) for device in sampled}
        work = RoundWork(
            number,
            tuple(_work(device, trained[device], model, answers[device], drops[device]) for device in sampled),
            loss=float(np.average([trained[d].loss for d in sampled], weights=[trained[d].samples for d in sampled])),
            attempted=sum(len(trained[device].offered.waves) for device in sampled if self._edges),
            sent=sum(sum(map(bool, trained[device].offered.waves)) for device in sampled),
            steps=steps,
            heads=len(self._edges) * packets.size(head),
        )
        time = round_time(plan, self._scenario, work, self._cost)
        seconds = cloud.close([(at, trained[device].update) for device, at in time.arrivals.items()])
        for device in sampled:
            self._keep(device, trained[device].state, answers[device])
        self._done = number
        if number == plan.rounds and self._edges:
            overlays = [Sender(0).encode(overlay) for overlay in self._again(self._finish)]
            cloud.gather(overlays)
            work = replace(work, overlays=tuple(packets.size(sent) for sent in overlays))
            time = replace(time, beside=round_time(plan, self._scenario, work, self._cost).beside)
        return work, until_closed(time, seconds)

    def accuracies(self) -> dict[str, float]:
        """`head`: of the small model; `overlay-1`, ...: of each overlay on its trunk (emo)."""
        split_network.load(self._net, self._cloud.state.weights)
        heads = {"head": self._net.head}
        for name, weights in self._overlays().items():
            heads[name] = split_network.overlay(self._plan.model, 0)
            split_network.load(heads[name], weights)
        served = [name for name in heads if name != "head"] or ["head"]
        percent = evaluation.accuracies(self._net.trunk, heads, served, self._test)
        return percent if self._edges else {"model": percent["model"]}

    def weights(self) -> dict[str, Weights]:
        """trunk and head, and with emo overlay-1, ..., one an edge."""
        parts: dict[str, Weights] = {}
        for part in ("trunk", "head"):
            parts[part] = {
                name.removeprefix(f"{part}."): array
                for name, array in self._cloud.state.weights.items()
                if name.startswith(f"{part}.")
            }
        return parts | self._overlays()

    def save(self, folder: Path) -> None:
        """The global model and `_State`; beside them `devices/` and `edge-N/`, links to what we have there."""
        names = tuple(sorted(path.name for path in self._devices.iterdir()))
        state = _State(done=self._done, now=self._cloud.now, devices=names)
        checkpoint.write(folder / _FILE, _KIND, state, self._cloud.state.weights)
        mirror(self._devices, folder / "devices")
        for edge in self._edges if self._done else ():
            mirror(self._slot(edge, self._done), folder / node_configs.edge_id(edge))

    def load(self, folder: Path) -> None:
        """Raises DataError where `folder` is not what `save` has left, now or when a device or an edge is needed;
        ConfigError where another version of EMO wrote it."""
        state, weights = checkpoint.read(folder / _FILE, _KIND, _State, self._cloud.state.weights, "fleet.json")
        slots = [node_configs.edge_id(edge) for edge in self._edges if state.done]
        paths = [folder / name for name in slots] + [folder / "devices" / name for name in state.devices]
        missing = [str(path) for path in paths if not path.exists()]
        if missing:
            raise DataError(f"{missing[0]}: is missing; {folder} is no longer the checkpoint that it was")
        self._cloud = self._at(state.done + 1, weights, state.now)
        self._done, self._open = state.done, None
        mirror(folder / "devices", self._devices)
        for edge in self._edges if self._done else ():
            mirror(folder / node_configs.edge_id(edge), self._slot(edge, self._done))

    def close(self) -> None:
        self._pool.close()

    # -- a round

    def _train(
        self, number: int, sampled: list[int], model: list[Packet], told: list[Packet]
    ) -> tuple[dict[int, messages.Trained], dict[int, list[Packet]], tuple[int, ...]]:
        """What the devices did, the intervals that they are answered with, and each overlay's steps."""
        self._pool.broadcast(messages.BeginRound(model))
        order = sorted(sampled, key=lambda device: -self._samples[device])  # so that workers end together
        requests = [self._request(device) for device in order]
        if self._together:
            (done,) = self._pool.run([Job(messages.TrainTogether(requests), 0)])
        else:
            done = self._pool.run([Job(request) for request in requests])
        trained = dict(zip(order, done, strict=True))
        self._open_edges()
        jobs = []
        names = {device: node_configs.device_id(self._plan, device) for device in sampled}
        groups = self._plan.groups()
        for edge in self._edges:
            offered = {names[d]: trained[d].offered for d in sampled if d in groups[edge]}
            jobs.append(self._job(edge, messages.TrainEdge(edge, number, told, offered, self._slot(edge, number))))
        edges: list[messages.EdgeTrained] = self._pool.run(jobs)
        answers = {name: intervals for edge in edges for name, intervals in edge.intervals.items()}
        intervals = {device: answers.get(name, []) for device, name in names.items()}
        return trained, intervals, tuple(edge.steps for edge in edges)

    def _request(self, device: int) -> messages.TrainDevice:
        path = self._devices / node_configs.device_id(self._plan, device)
        if not path.exists():
            return messages.TrainDevice(device, b"", [])
        waiting, arrays = snapshot_file.read(path, _DEVICE, _Waiting, _LIMIT, DataError, "Simulate it anew.")
        frames = (arrays[str(number)].tobytes() for number in range(len(waiting.topics)))
        return messages.TrainDevice(device, arrays["state"].tobytes(), list(zip(waiting.topics, frames, strict=True)))

    def _keep(self, device: int, state: bytes, intervals: Sequence[Packet]) -> None:
        if state:
            parts = {"state": state} | {str(number): data for number, (_, data) in enumerate(intervals)}
            arrays = {name: np.frombuffer(data, np.uint8) for name, data in parts.items()}
            path = self._devices / node_configs.device_id(self._plan, device)
            waiting = _Waiting(topics=[topic for topic, _ in intervals])
            snapshot_file.write(path, _DEVICE, waiting, arrays, synced=False)

    def _finish(self) -> list[OverlayWeights]:
        self._open_edges()
        told = [*self._cloud.run_state, *self._cloud.head]
        return self._pool.run([self._job(edge, messages.FinishEdge(edge, told)) for edge in self._edges])

    def _overlays(self) -> dict[str, Weights]:
        def ask() -> list[bytes]:
            self._open_edges()
            return self._pool.run([self._job(edge, messages.ReadOverlay(edge)) for edge in self._edges])

        loaded = [safetensors.numpy.load(data) for data in self._again(ask)]
        return {f"overlay-{n}": dict(sorted(weights.items())) for n, weights in enumerate(loaded, 1)}

    def _open_edges(self) -> None:
        """Each in its worker, as it was after the round that was done last."""
        if self._open != self._pool.restarts:
            slots = {edge: self._slot(edge, self._done) if self._done else None for edge in self._edges}
            self._pool.run([self._job(edge, messages.OpenEdge(edge, slots[edge])) for edge in self._edges])
            self._open = self._pool.restarts

    def _job(self, edge: int, request: Request[A]) -> Job[A]:
        """In the worker that has the edge."""
        return Job(request, edge % self._pool.workers)

    def _slot(self, edge: int, number: int) -> Path:
        return self._folder / node_configs.edge_id(edge) / str(number % 2)

    def _again(self, do: Callable[[], T]) -> T:
        return self._pool.again(do, f"round {self._done + 1}")

    def _at(self, number: int, weights: Weights, now: float) -> Cloud:
        return Cloud(self._plan, weights, self._samples, self._deadline_s, number, now, self._layout)


def _work(
    device: int, trained: messages.Trained, model: list[Packet], intervals: list[Packet], drops: bool
) -> DeviceWork:
    sizes = {
        "Update": 0 if drops else packets.size(trained.update),
        "ActivationBatch": sum(map(packets.size, trained.offered.waves)),
        "TapReport": packets.size(trained.offered.report),
    }
    down = {"GlobalModel": packets.size(model), "Interval": packets.size(intervals)}
    return DeviceWork(
        device,
        len(trained.offered.waves),
        trained.samples,
        {kind: size for kind, size in down.items() if size},
        {kind: size for kind, size in sizes.items() if size},
    )
