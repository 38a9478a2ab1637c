"""One policy with one codec, on a recorded run: what it sends, and what the ensemble is worth.

The device's side (device_app/publisher.py), the frames and the edge's node are the fleet's own; federated learning was recorded
by trace.py. The network is a loop: each message arrives before the next batch is offered, and an edge trains up to its budget in
between.
"""

import json
import tempfile
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from device_app.publisher import Publisher
from edge_app.cache.disk import DiskCache
from edge_app.cache.replay_cache import ReplayCache
from edge_app.node import EdgeNode
from emo.config import Codec, Controller, EdgeConfig, Overlay
from emo.data.dataset import Dataset
from emo.journal import Journal
from emo.models import split_network
from emo.wire.codec import Packed
from emo.wire.messages import GlobalHead, Interval, RunState
from testbed.evaluation import accuracies
from testbed.experiments import trace
from testbed.splitfed.wire import Wire

_RUN = "study"
_FILE = 3200  # HDF5 around the encoded bytes of a batch on the disk, measured
_MEMORY = 2 << 30  # level 1 holds everything: reading HDF5 back is not what is studied


@dataclass(frozen=True)
class Arm:
    """`policy`, `sampling`: as in the configuration of an edge. `first`: how many of the devices belong to the first
    edge. `share`: of what all batches would take on its disk, the budget that an edge has."""

    policy: str
    codec: Codec
    first: int
    overlay: Overlay
    max_interval: float = 4.0
    fresh_rounds: int = 0
    sampling: str = "mixed"
    share: float = 1.0


class Study:
    """`options` and `folder`: the recorded run of `rounds` rounds; it is read round by round."""

    def __init__(self, arm: Arm, options: trace.Options, folder: Path, rounds: int, scratch: Path) -> None:
        self._rounds, self._fresh_after = rounds, rounds - arm.fresh_rounds
        self._arm, self._options, self._folder = arm, options, folder
        self._spec = options.model
        groups = (range(arm.first), range(arm.first, options.devices))
        self.journal = Journal()
        self._disks = [
            DiskCache(scratch / f"edge-{number}", self._budget(len(group)), durability="none")
            for number, group in enumerate(groups, 1)
        ]
        self._caches: list[ReplayCache] = []
        self._edges = [
            self._edge(number, group, disk)
            for number, (group, disk) in enumerate(zip(groups, self._disks, strict=True), 1)
        ]
        self._offers = [
            Publisher(_name(device), f"edge-{1 + (device >= arm.first)}", arm.codec)
            for device in range(options.devices)
        ]
        for offers in self._offers:
            offers.begin(_RUN)
        self._wire = Wire()
        self.attempted = self.sent = self.raw = self._round = 0

    def _edge(self, number: int, group: range, disk: DiskCache) -> EdgeNode:
        config = EdgeConfig(
            id=f"edge-{number}",
            devices=tuple(_name(device) for device in group),
            model=self._spec,
            controller=Controller(policy=self._arm.policy, max_interval=self._arm.max_interval, max_age=10**6),
            overlay=self._arm.overlay.model_copy(update={"seed": self._options.seed + number}),
        )
        cache = ReplayCache(disk, _MEMORY, self._options.seed, sampling=self._arm.sampling)
        self._caches.append(cache)
        return EdgeNode(config, cache, self.journal)

    def _budget(self, devices: int) -> int | None:
        """Bytes of an edge's disk: the share, of full frames of every batch that its devices have."""
        if self._arm.share >= 1:
            return None
        recorded = trace.read(self._folder, 1)
        samples = int(recorded.batches[0, 2])
        device = recorded.batches[0, 0]
        batches = int((recorded.batches[:, 0] == device).sum())  # as many on every device
        first = Packed(recorded.activations[:samples], self._arm.codec)
        return int(self._arm.share * devices * batches * (len(first.data()) + _FILE))

    def round(self, number: int) -> trace.Round:
        """Offer what the devices of round `number` see, and train the overlays."""
        self._round = number
        recorded = trace.read(self._folder, number)
        self._begin(number)
        passed: set[int] = set()
        for device, batch, activations, labels in recorded.offered():
            if device in passed:  # every device has offered one more: the edges have had time to train
                self._train(passed, number)
                passed.clear()
            passed.add(device)
            self._offer(device, batch, number, activations, labels)
        self._train(passed, number)
        for device in np.unique(recorded.batches[:, 0]):
            self._wire.carry(self._offers[device].report(number))
        return recorded

    def _begin(self, number: int) -> None:
        """What the cloud says to the edges."""
        net = split_network.network(self._spec, self._options.seed)
        if number > 1:
            split_network.load(net, trace.read(self._folder, number - 1).weights)
        for edge in self._edges:
            list(edge.handle(RunState(_RUN, number, self._rounds, "training"), 0.0))
            list(edge.handle(GlobalHead(_RUN, number, split_network.weights(net.head)), 0.0))

    def _offer(self, device: int, batch: int, version: int, activations: np.ndarray, labels: np.ndarray) -> None:
        which, offers = int(device >= self._arm.first), self._offers[device]
        self.attempted += 1
        self.raw += 2 * activations.nbytes  # SFL: activations up, gradients down, fp32, no framing
        message = offers.offer(batch, version, activations.copy(), labels, version > self._fresh_after)
        if message is None:
            return
        self.sent += 1
        for answer in self._edges[which].handle(self._wire.carry(message), 0.0):
            if isinstance(answer, Interval):
                offers.answer(self._wire.carry(answer))

    def _train(self, devices: set[int], number: int) -> None:
        for device in devices:  # a fleet's edge hears of them once a round, and these are not counted
            list(self._edges[device >= self._arm.first].handle(self._offers[device].report(number), 0.0))
        for edge in self._edges:
            while any(True for _ in edge.work(0.0)):
                pass

    def result(self, recorded: trace.Round, test: Dataset) -> dict[str, Any]:
        """Accuracies in percent with the model of `recorded`, and the bytes so far."""
        net = split_network.network(self._spec, 0)
        split_network.load(net, recorded.weights)
        heads = {"fl": net.head}
        for number, edge in enumerate(self._edges, 1):
            heads[f"overlay-{number}"] = split_network.overlay(self._spec, 0)
            split_network.load(heads[f"overlay-{number}"], edge.overlay())
        overlays = list(heads)[1:]
        percent = accuracies(net.trunk, heads, overlays, test)
        activations, total = self._wire.bytes["ActivationBatch"], self._wire.bytes.total()
        return {
            "policy": self._arm.policy,
            "max_interval": self._arm.max_interval,
            "fresh_rounds": self._arm.fresh_rounds,
            "sampling": self._arm.sampling,
            "share": self._arm.share,
            "entries": sum(cache.stats()["entries"] for cache in self._caches),
            "mean_age": self._mean_age(),
            "codec": self._arm.codec,
            "overlay": self._arm.overlay.model_dump(mode="json", exclude_defaults=True, exclude={"seed"}),
            "sent_fraction": self.sent / self.attempted,
            "bytes_activations": activations,
            "bytes_control": total - activations,
            "bytes_sfl": self.raw,
            "reduction": self.raw / total,
            "accuracy_bagged": percent["model"],
            "accuracy_overlays": [percent[name] for name in overlays],
            "accuracy_fl": percent["fl"],
        }

    def _mean_age(self) -> float:
        """Rounds since the batches in the caches were made."""
        versions = [disk.version(*key) for disk in self._disks for key in disk.keys()]  # noqa: SIM118 - a method of ours
        return self._round - float(np.mean([version or 0 for version in versions]))

    def close(self) -> None:
        for cache in self._caches:
            cache.close()
        for disk in self._disks:
            disk.close()


def run(
    arm: Arm, options: trace.Options, folder: Path, rounds: int, every: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """`Study.result` after every `every` rounds and the last one, each with its `round` and `seed`.

    Kept in `folder`: the same arm with the same rounds is not run again.
    """
    plan = {"arm": {**asdict(arm), "overlay": arm.overlay.model_dump()}, "rounds": rounds, "every": every}
    name = f"{arm.policy}-{arm.codec}-{zlib.crc32(json.dumps(plan, sort_keys=True).encode()):08x}.json"
    kept = folder / name
    if kept.exists():
        before: list[dict[str, Any]] = json.loads(kept.read_text())["rows"]
        return before
    torch.set_num_threads(1)
    _, test = options.load()
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="emo-intervals-") as scratch,
        closing(Study(arm, options, folder, rounds, Path(scratch))) as study,
    ):
        for number in range(1, rounds + 1):
            recorded = study.round(number)
            if number % every == 0 or number == rounds:
                row = {"round": number, "seed": options.seed, **study.result(recorded, test)}
                rows.append(row)
                say(
                    f"seed {options.seed} {arm.policy} {arm.codec}: round {number} of {rounds}: "
                    f"{100 * row['sent_fraction']:.1f} % sent, {row['reduction']:.1f}x, "
                    f"bagged {row['accuracy_bagged']:.2f} %, FL {row['accuracy_fl']:.2f} %"
                )
    kept.write_text(json.dumps({**plan, "rows": rows}, indent=1))
    return rows


def title(row: dict[str, Any]) -> str:
    """The policy as `--arms` has it: with the cap of its intervals where it has one, and its fresh rounds."""
    cap = f"@{row['max_interval']:g}" if row["policy"] in ("svcca", "cka") else ""
    return f"{row['policy']}{cap}" + (f"+{row['fresh_rounds']}" if row["fresh_rounds"] else "")


def _name(device: int) -> str:
    return f"device-{device}"
