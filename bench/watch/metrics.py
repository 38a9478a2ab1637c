"""What a scrape of `emo watch` takes: `/metrics` of many nodes with thirty figures each, beside prometheus_client.

    python -m bench.watch.metrics [--json FILE] [--devices 1000] [--turns 5]

`state_s`, `text_s`: seconds of processor for the state and for its text, the median of the turns; `lines`, `mb` of the text;
`client_s`: for the figures alone by prometheus_client's registry.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from cloud_app.watch.figures import KNOWN
from cloud_app.watch.metrics import exposition
from cloud_app.watch.view import View
from emo.wire.messages import Report, Status
from testbed import figures

T = TypeVar("T")
_NOW = 1_800_000_000.0
_NAMES = [name for name in KNOWN if name.startswith(("sent", "received", "train.", "tap.", "machine."))][:30]


class _Figures:
    """The same numbers as the library wants them."""

    def __init__(self, view: View) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        for number, name in enumerate(_NAMES):
            family = GaugeMetricFamily(f"emo_figure_{number}", "Text.", labels=("node", "tier"))
            for node in self._view.nodes.values():
                family.add_metric((node.id, node.tier), node.figures[name])
            yield family


def fleet(devices: int) -> View:
    view = View(devices)
    for number in range(devices):
        name = f"device-{number:04}"
        view.take(Status(name, "device", online=True, samples=100), _NOW)
        told = dict.fromkeys(_NAMES, number * 1.37)
        view.take(Report(name, "device", "run-1", _NOW, f"edge-{number % 4}", figures=told), _NOW)
    return view


def timed(turns: int, work: Callable[[], T]) -> tuple[float, T]:
    """Median seconds of processor, and what came of it."""
    took = []
    for _ in range(turns):
        began = time.process_time()
        made = work()
        took.append(time.process_time() - began)
    return round(statistics.median(took), 3), made


def main() -> None:
    asked = figures.parser(__doc__, devices=1000, turns=5).parse_args()
    view = fleet(asked.devices)
    registry = CollectorRegistry()
    registry.register(_Figures(view))
    watcher = {"id": "watch", "version": "0", "connected": True, "changed": _NOW, "refused": 0}
    state_s, state = timed(asked.turns, lambda: {**view.state(_NOW), "watcher": watcher})
    text_s, text = timed(asked.turns, lambda: exposition(state, view.nodes.values(), 1))
    found: dict[str, Any] = {"state_s": state_s, "text_s": text_s, "lines": text.count(b"\n"), "mb": len(text) / 1e6}
    found["client_s"], _ = timed(asked.turns, lambda: generate_latest(registry))
    figures.show(found)
    figures.write(asked.json, found)


if __name__ == "__main__":
    main()
