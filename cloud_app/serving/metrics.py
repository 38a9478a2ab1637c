"""What a model's requests came to: counted once, shown as Triton's statistics extension and as Prometheus text.

Knows counts and nanoseconds; knows neither models, HTTP nor a clock. Sources: triton-inference-server/server,
docs/protocol/extension_statistics.md; Prometheus's text exposition format 0.0.4.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)


@dataclass
class Duration:
    """`ns` over `count` events."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        self.count += count
        self.ns += ns

    def shown(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


@dataclass
class Stats:
    """Of one version of one model. `seconds`: requests by the bound of SECONDS that they stayed within (the last one
    is beyond all); `batches`: runs, and what they took, by their number of samples."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    parse: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    answer: Duration = field(default_factory=Duration)
    samples: int = 0
    last_ms: int = 0
    waiting: int = 0
    batches: dict[int, Duration] = field(default_factory=dict)
    seconds: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    statuses: Counter[int] = field(default_factory=Counter)

    def request(self, status: int, ns: int, now_ms: int) -> None:
        """A request has been answered with `status`, `ns` after its first byte was read, at `now_ms` of the epoch."""
        self.statuses[status] += 1
        (self.success if status < 400 else self.fail).add(ns)
        self.seconds[bisect_left(SECONDS, ns / 1e9)] += 1
        self.last_ms = now_ms

    def ran(self, samples: int, requests: int, ns: int) -> None:
        """A run for `requests` requests with `samples` samples in all took `ns`."""
        self.samples += samples
        self.infer.add(ns * requests, requests)
        self.batches.setdefault(samples, Duration()).add(ns)

    def shown(self, name: str, version: int) -> dict[str, Any]:
        nothing = Duration().shown()
        return {
            "name": name,
            "version": str(version),
            "last_inference": self.last_ms,
            "inference_count": self.samples,
            "execution_count": sum(each.count for each in self.batches.values()),
            "inference_stats": {
                "success": self.success.shown(),
                "fail": self.fail.shown(),
                "queue": self.queue.shown(),
                "compute_input": self.parse.shown(),
                "compute_infer": self.infer.shown(),
                "compute_output": self.answer.shown(),
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [
                {
                    "batch_size": size,
                    "compute_input": nothing,
                    "compute_infer": took.shown(),
                    "compute_output": nothing,
                }
                for size, took in sorted(self.batches.items())
            ],
        }


def prometheus(models: Iterable[tuple[str, int, Stats]], gauges: Mapping[str, float]) -> str:
    """`models`: (name, version, stats); `gauges`: of the whole process, name -> value."""
    rows = [(f'model="{name}",version="{version}"', stats) for name, version, stats in models]
    lines = []

    def family(name: str, kind: str, text: str, values: Iterable[tuple[str, float]]) -> None:
        lines.extend([f"# HELP {name} {text}", f"# TYPE {name} {kind}"])
        lines.extend(f"{name}{labels} {value:.15g}" for labels, value in values)

    family(
        "emo_requests_total",
        "counter",
        "Inference requests answered, by HTTP status.",
        (
            (f'{{{labels},status="{status}"}}', count)
            for labels, stats in rows
            for status, count in sorted(stats.statuses.items())
        ),
    )
    family(
        "emo_failures_total",
        "counter",
        "Inference requests answered with an error.",
        ((f"{{{labels}}}", stats.fail.count) for labels, stats in rows),
    )
    family(
        "emo_request_seconds",
        "histogram",
        "From the first byte read to the answer.",
        (row for labels, stats in rows for row in _latency(labels, stats)),
    )
    family(
        "emo_batch_samples",
        "histogram",
        "Samples in one run of the model.",
        (row for labels, stats in rows for row in _batch(labels, stats)),
    )
    for name, text, took in (
        ("emo_queue_seconds_total", "Time that requests waited for a run.", "queue"),
        (
            "emo_infer_seconds_total",
            "Time that requests' runs took, a run counted once for each of its requests.",
            "infer",
        ),
    ):
        family(
            name,
            "counter",
            text,
            ((f"{{{labels}}}", getattr(stats, took).ns / 1e9) for labels, stats in rows),
        )
    family(
        "emo_queue_requests",
        "gauge",
        "Requests that wait for a run now.",
        ((f"{{{labels}}}", stats.waiting) for labels, stats in rows),
    )
    for name, value in gauges.items():
        family(name, "counter" if name.endswith("_total") else "gauge", "Of this process.", [("", value)])
    return "\n".join([*lines, ""])


def _latency(labels: str, stats: Stats) -> Iterator[tuple[str, float]]:
    total = 0
    for bound, count in zip((*SECONDS, "+Inf"), stats.seconds, strict=True):
        total += count
        yield f'_bucket{{{labels},le="{bound}"}}', total
    yield f"_sum{{{labels}}}", (stats.success.ns + stats.fail.ns) / 1e9
    yield f"_count{{{labels}}}", total


def _batch(labels: str, stats: Stats) -> Iterator[tuple[str, float]]:
    sizes = list(stats.batches.items())
    for bound in _BATCHES:
        yield f'_bucket{{{labels},le="{bound}"}}', sum(took.count for size, took in sizes if size <= bound)
    runs = sum(took.count for _, took in sizes)
    yield f'_bucket{{{labels},le="+Inf"}}', runs
    yield f"_sum{{{labels}}}", stats.samples
    yield f"_count{{{labels}}}", runs
