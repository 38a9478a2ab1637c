"""Counts a model's requests and the time that they take, for Triton's statistics extension and for Prometheus.

Source: triton-inference-server/server, docs/protocol/extension_statistics.md.
"""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass
class Duration:
    """`ns` over `count` events."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        self.count += count
        self.ns += ns

    def as_triton(self) -> dict[str, int]:
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

    def as_triton(self, name: str, version: int) -> dict[str, Any]:
        nothing = Duration().as_triton()
        return {
            "name": name,
            "version": str(version),
            "last_inference": self.last_ms,
            "inference_count": self.samples,
            "execution_count": sum(each.count for each in self.batches.values()),
            "inference_stats": {
                "success": self.success.as_triton(),
                "fail": self.fail.as_triton(),
                "queue": self.queue.as_triton(),
                "compute_input": self.parse.as_triton(),
                "compute_infer": self.infer.as_triton(),
                "compute_output": self.answer.as_triton(),
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [
                {
                    "batch_size": size,
                    "compute_input": nothing,
                    "compute_infer": took.as_triton(),
                    "compute_output": nothing,
                }
                for size, took in sorted(self.batches.items())
            ],
        }
