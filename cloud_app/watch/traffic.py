"""How many bytes of each kind the nodes of a fleet have sent, and how many of the batches that they could have sent: out of
their counters."""

from collections.abc import Iterable
from dataclasses import dataclass

from cloud_app.watch.node_state import Node
from emo.wire.messages import Role

MOST = 9e15  # of a sum that is shown; exact as a float
# Bytes by kind: counted where only one end of each message counts them.
_KINDS: dict[Role, dict[str, str]] = {
    "device": {
        "Update": "sent_bytes.Update",
        "Status": "sent_bytes.Status",
        "GlobalModel": "received_bytes.GlobalModel",
        "ActivationBatch": "sent_bytes.ActivationBatch",
        "TapReport": "sent_bytes.TapReport",
        "Interval": "received_bytes.Interval",
        "Report": "sent_bytes.Report",
        "Event": "sent_bytes.Event",
    },
    "edge": {
        "OverlayWeights": "sent_bytes.OverlayWeights",
        "GlobalHead": "received_bytes.GlobalHead",
        "Report": "sent_bytes.Report",
        "Event": "sent_bytes.Event",
    },
    "cloud": {"Report": "sent_bytes.Report", "Event": "sent_bytes.Event", "RunHistory": "sent_bytes.RunHistory"},
    "observer": {},
}
SORTS = {
    "fl": ("Update", "Status", "GlobalModel"),
    "activations": ("ActivationBatch", "TapReport", "Interval"),
    "reports": ("Report", "Event", "RunHistory"),
}
BY_KIND = tuple(dict.fromkeys(kind for kinds in _KINDS.values() for kind in kinds))


def of_device(sort: str) -> list[str]:
    """The counters of a device that make up one of SORTS."""
    return [_KINDS["device"][kind] for kind in SORTS[sort] if kind in _KINDS["device"]]


@dataclass(frozen=True)
class Totals:
    """Bytes by kind, in this run; batches offered, and sent."""

    kinds: dict[str, float]
    offered: float
    sent: float

    @property
    def sorts(self) -> dict[str, float]:
        return {sort: sum(self.kinds[kind] for kind in kinds) for sort, kinds in SORTS.items()}

    @property
    def share(self) -> float | None:
        """Of the batches offered those sent."""
        return self.sent / self.offered if self.offered else None


def sums(node: Node) -> tuple[float, ...]:
    """Its bytes by kind in this run, and batches offered and sent."""
    taps = (max(0.0, node.sum("tap.offered")), max(0.0, node.sum("tap.sent")))
    return (*map(node.of_run, _KINDS[node.tier].values()), *taps)


def totals(nodes: Iterable[Node]) -> Totals:
    """Out of `Node.sums`, as `sums` makes them."""
    kinds = dict.fromkeys(BY_KIND, 0.0)
    offered = sent = 0.0
    parts: dict[Role, list[tuple[float, ...]]] = {tier: [] for tier in _KINDS}
    for node in nodes:
        if node.sums:
            parts[node.tier].append(node.sums)
    for tier, names in _KINDS.items():
        columns = [sum(each) for each in zip(*parts[tier], strict=True)]
        for kind, total in zip(names, columns, strict=False):
            kinds[kind] += total
        if tier == "device" and columns:
            offered, sent = columns[-2:]
    return Totals({kind: min(value, MOST) for kind, value in kinds.items()}, min(offered, MOST), min(sent, MOST))
