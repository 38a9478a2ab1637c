"""An edge inside a worker process: the fleet's own node and cache, fed with one round's packets at a time, in the order in
which they reach an edge whose devices train side by side.

    FOLDER/live/       the cache as it is now; nothing of it outlives the process
    FOLDER/0, 1/       after the last two rounds: cache/ (links to its files), and edge_app/snapshot.py's file
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from edge_app import snapshot
from edge_app.cache.disk import DiskCache
from edge_app.cache.replay_cache import ReplayCache
from edge_app.node import EdgeNode
from emo.errors import ModelError, WireError
from emo.journal import Journal
from emo.wire.messages import CannotTrain, Interval, Message, OverlayWeights, TapReport, Weights
from testbed import node_configs
from testbed.fleet.messages import EdgeTrained, Offered, TrainEdge
from testbed.plan import Plan
from testbed.workers import packets
from testbed.workers.packets import Packet, Sender


class Edge:
    """Edge `number` of `plan`, in `folder`. `slot`: where to go on from, as `round` left it; None: a new edge."""

    def __init__(self, plan: Plan, number: int, folder: Path, slot: Path | None) -> None:
        """Raises CacheError on a slot that is damaged or another edge's."""
        live = folder / "live"
        shutil.rmtree(live, ignore_errors=True)
        live.mkdir(parents=True)
        config = node_configs.edge(plan, number, live)
        settings = config.cache
        if slot is not None:
            mirror(slot / "cache", live)
        self._live, self.journal = live, Journal()
        self._disk = DiskCache(
            live,
            settings.budget_mib and settings.budget_mib << 20,
            settings.eviction,
            durability=settings.durability,
        )
        self._cache = ReplayCache(
            self._disk,
            settings.memory_mib << 20,
            config.overlay.seed,
            sampling=settings.sampling,
            memory_share=settings.memory_share,
            prefetch=False,  # processes already take all the cores
        )
        self._node = EdgeNode(config, self._cache, self.journal)
        self._patience_s = config.overlay.patience_s
        if slot is not None:
            self._node.resume(snapshot.read(slot, self._node.like()))

    def round(self, request: TrainEdge) -> EdgeTrained:
        """One round, after which the edge is kept in `request.slot`. Raises WireError, CacheError, OSError.

        First the first batch of each device, then the second of each, ...; after each of these waves the overlay trains
        up to its budget, as it would beside devices that train at one pace. To know its budget then, the edge is told
        of each attempt at once; in a fleet the report comes once a round, and only that one is counted as bytes.
        """
        for message in packets.decode(request.told):
            self._tell(message)
        offered = request.offered
        sender, before = Sender(request.round), self.journal.counts["overlay.steps"]
        answers: dict[str, list[Packet]] = {device: [] for device in offered}
        reports = {device: _report(own) for device, own in offered.items()}
        sent = dict.fromkeys(offered, 0)
        for wave in range(max((len(own.waves) for own in offered.values()), default=0)):
            for device, own in offered.items():
                if wave >= len(own.waves):
                    continue
                for batch in packets.decode(own.waves[wave]):
                    sent[device] += 1
                    for answer in self._node.handle(batch, 0.0):
                        if isinstance(answer, Interval):
                            answers[device] += sender.encode(answer)
                self._tell(_so_far(reports[device], own, wave + 1, sent[device]))
            self._train(0.0)
        for report in reports.values():
            self._tell(report)
        self._train(0.0)
        self._keep(request.slot)
        return EdgeTrained(self.journal.counts["overlay.steps"] - before, answers)

    def finish(self, told: Iterable[Message]) -> OverlayWeights:
        """The run has ended, as the cloud says: the overlay, as it is sent there."""
        for message in told:
            self._tell(message)
        sent: list[OverlayWeights] = []
        while not sent:
            sent = self._train(self._patience_s)
        return sent[0]

    def overlay(self) -> Weights:
        """As it is now, copied."""
        return self._node.overlay()

    def _keep(self, slot: Path) -> None:
        """All that another process needs to go on from here."""
        slot.mkdir(parents=True, exist_ok=True)
        mirror(self._live, slot / "cache")
        snapshot.write(slot, self._node.snapshot())

    def close(self) -> None:
        self._cache.close()
        self._disk.close()

    def _tell(self, message: Message) -> None:
        list(self._node.handle(message, 0.0))

    def _train(self, now: float) -> list[OverlayWeights]:
        """Up to the budget, or until the overlay is sent."""
        while items := list(self._node.work(now)):
            for item in items:
                if isinstance(item, CannotTrain):
                    raise ModelError(f"{item.node} cannot train: {item.reason}")
            sent = [item for item in items if isinstance(item, OverlayWeights)]
            if sent:
                return sent
        return []


def mirror(source: Path, target: Path) -> None:
    """`target`, made when missing, holds just the files that `source` holds but for `lock`: as links to the same
    content where the file system has them, so that neither's may be changed in place. Raises OSError."""
    target.mkdir(parents=True, exist_ok=True)
    there = {entry.name: entry for entry in os.scandir(source) if entry.name != "lock"}
    same: set[str] = set()
    for entry in os.scandir(target):
        other = there.get(entry.name)
        if other is not None and (entry.is_dir() or entry.inode() == other.inode()):
            same.add(entry.name)
        elif entry.is_dir():
            shutil.rmtree(entry.path)
        else:
            Path(entry.path).unlink()
    for name, entry in there.items():
        if entry.is_dir():
            mirror(Path(entry.path), target / name)
        elif name not in same:
            try:
                os.link(entry.path, target / name)
            except OSError:  # another file system, or one without links
                shutil.copy2(entry.path, target / name)


def _report(offered: Offered) -> TapReport:
    (report,) = packets.decode(offered.report)
    if not isinstance(report, TapReport):
        raise WireError(f"a {type(report).__name__} came where a device's report belongs")
    return report


def _so_far(report: TapReport, offered: Offered, waves: int, sent: int) -> TapReport:
    """What the device would have reported after its first `waves` batches, `sent` of which went."""
    held = report.sent - sum(bool(wave) for wave in offered.waves)
    attempted = report.attempted - len(offered.waves)
    return replace(report, attempted=attempted + waves, sent=held + sent)
