"""What Prometheus is told: the names, labels and bounds that operators' rules are written with."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cloud_app.serving.http.prometheus import exposition
from cloud_app.serving.metrics import Stats


def samples(models, process):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition(models, process).decode())
        for sample in family.samples
    }


@pytest.fixture
def models():
    busy, idle = Stats(waiting=4), Stats()
    busy.request(200, 3_000_000, 1)
    busy.request(200, 20_000_000_000, 2)
    busy.request(503, 1_000_000, 3)
    busy.ran(1, 1, 2_000_000)
    busy.ran(5, 2, 3_000_000)
    busy.ran(100, 1, 5_000_000)
    busy.queue.add(500_000_000, 2)
    return [("busy", 2, busy), ("idle", 1, idle)]


def test_each_model_has_its_series(models):
    found = samples(models, {})
    busy, idle = (("model", "busy"), ("version", "2")), (("model", "idle"), ("version", "1"))
    assert found["emo_requests_total", busy[0], ("status", "200"), busy[1]] == 2
    assert found["emo_requests_total", busy[0], ("status", "503"), busy[1]] == 1
    for name, of_busy in (
        ("emo_failures_total", 1),
        ("emo_request_seconds_count", 3),
        ("emo_request_seconds_sum", 20.004),
        ("emo_batch_samples_count", 3),
        ("emo_batch_samples_sum", 106),
        ("emo_queue_seconds_total", 0.5),
        ("emo_infer_seconds_total", 0.013),
        ("emo_queue_requests", 4),
    ):
        assert found[name, *busy] == pytest.approx(of_busy)
        assert found[name, *idle] == 0


def test_the_bounds_of_the_histograms(models):
    found = samples(models, {})

    def buckets(name):
        return {
            dict(labels)["le"]: value
            for (of, *labels), value in found.items()
            if of == f"{name}_bucket" and ("model", "busy") in labels
        }

    seconds = buckets("emo_request_seconds")
    assert list(seconds) == [
        "0.001",
        "0.0025",
        "0.005",
        "0.01",
        "0.025",
        "0.05",
        "0.1",
        "0.25",
        "0.5",
        "1.0",
        "2.5",
        "5.0",
        "10.0",
        "+Inf",
    ]
    assert (seconds["0.001"], seconds["0.0025"], seconds["0.005"], seconds["10.0"]) == (1, 1, 2, 2)
    assert seconds["+Inf"] == 3
    assert buckets("emo_batch_samples") == {
        "1": 1, "2": 1, "4": 1, "8": 2, "16": 2, "32": 2, "64": 2, "+Inf": 3
    }  # fmt: skip


def test_figures_of_the_process_and_of_two_endpoints_in_it(models):
    for count in (1, 2):
        text = exposition(models, {"emo_held_bytes": 5, "emo_workers_lost_total": count}).decode()
        assert "# TYPE emo_held_bytes gauge\nemo_held_bytes 5.0\n" in text
        assert f"# TYPE emo_workers_lost_total counter\nemo_workers_lost_total {count}.0\n" in text
        assert text.count("# TYPE process_resident_memory_bytes gauge\n") == 1
