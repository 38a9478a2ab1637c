"""The endpoint's figures in Prometheus's text format, made from what is counted elsewhere."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from cloud_app.serving.metrics import SECONDS, Stats

_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_MODEL = ("model", "version")


def exposition(models: Sequence[tuple[str, int, Stats]], process: Mapping[str, float]) -> bytes:
    """`models`: (name, version, stats); `process`: figures of the whole process, name -> value."""
    registry = CollectorRegistry()  # not the library's own: two endpoints in one process would share that
    registry.register(_Figures(models, process))
    ProcessCollector(registry=registry)
    text: bytes = generate_latest(registry)
    return text


@dataclass(eq=False)  # the registry keeps it in a dict
class _Figures:
    models: Sequence[tuple[str, int, Stats]]
    process: Mapping[str, float]

    def collect(self) -> Iterator[Metric]:
        counter = partial(CounterMetricFamily, labels=_MODEL)
        histogram = partial(HistogramMetricFamily, labels=_MODEL)
        infer_text = "Time that requests' runs took, a run counted once for each of its requests."
        requests = CounterMetricFamily(
            "emo_requests", "Inference requests answered, by HTTP status.", labels=(*_MODEL, "status")
        )
        failures = counter("emo_failures", "Inference requests answered with an error.")
        latency = histogram("emo_request_seconds", "From the first byte read to the answer.")
        batches = histogram("emo_batch_samples", "Samples in one run of the model.")
        queue = counter("emo_queue_seconds", "Time that requests waited for a run.")
        infer = counter("emo_infer_seconds", infer_text)
        waiting = GaugeMetricFamily("emo_queue_requests", "Requests that wait for a run now.", labels=_MODEL)
        for name, version, stats in self.models:
            model = (name, str(version))
            for status, count in sorted(stats.statuses.items()):
                requests.add_metric((*model, str(status)), count)
            failures.add_metric(model, stats.fail.count)
            bounds = [*map(str, SECONDS), "+Inf"]
            within = list(zip(bounds, accumulate(stats.seconds), strict=True))
            latency.add_metric(model, within, (stats.success.ns + stats.fail.ns) / 1e9)
            batches.add_metric(model, _batches(stats), stats.samples)
            queue.add_metric(model, stats.queue.ns / 1e9)
            infer.add_metric(model, stats.infer.ns / 1e9)
            waiting.add_metric(model, stats.waiting)
        yield from (requests, failures, latency, batches, queue, infer, waiting)
        for name, value in self.process.items():
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield family(name, "Of this process.", value)


def _batches(stats: Stats) -> list[tuple[str, float]]:
    runs = [(size, took.count) for size, took in list(stats.batches.items())]
    within = [(str(bound), sum(count for size, count in runs if size <= bound)) for bound in _BATCHES]
    return [*within, ("+Inf", sum(count for _, count in runs))]
