"""/metrics: every figure by node, in Prometheus's conventions, bounded whatever a node says."""

import shutil
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cloud_app.watch.figures import KNOWN
from cloud_app.watch.metrics import exposition
from cloud_app.watch.view import View
from emo.wire.messages import Event, Report, RunHistory, RunState, Status

NOW = 1_800_000_000.0
WATCHER = {"id": "watch", "version": "0.2.0", "since": NOW, "connected": True, "changed": NOW, "refused": 3}


def fleet(figures, nodes=100):
    """A view of a cloud, an edge and a device; each has told `figures`."""
    view = View(nodes)
    view.link(True, NOW)
    for node, role in (("cloud", "cloud"), ("edge-1", "edge"), ("device-1", "device")):
        view.take(Status(node, role, True, 10), NOW)
        tell(view, node, role, figures)
    view.take(RunState("run-1", 2, 5, "training"), NOW)
    return view


def tell(view, node, role, figures, at=NOW):
    edge = "edge-1" if role == "device" else ""
    for first in range(0, max(1, len(figures)), 60):
        part = dict(list(figures.items())[first : first + 60])
        view.take(Report(node, role, "run-1", at + first / 1e3, edge, figures=part), at)


def text(view, now=NOW):
    return exposition({**view.state(now), "watcher": WATCHER}, view.nodes.values(), readers=2).decode()


def samples(text):
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(found, name, **labels):
    return found.get((name, frozenset(labels.items())))


def test_a_figure_has_its_node_tier_kind_and_link_and_the_base_unit():
    figures = {"sent_bytes.Update": 7, "received_bytes.ActivationBatch": 8, "tls.days_left.lan": 3}
    found = samples(text(fleet(figures | {"cache.starved_us": 2_500_000, "updates.refused": 4, "cache.age.4": 5})))
    for node, tier in (("cloud", "cloud"), ("edge-1", "edge"), ("device-1", "device")):
        who = {"node": node, "tier": tier}
        assert of(found, "emo_sent_bytes_total", **who, kind="Update", link="wan") == 7
        assert of(found, "emo_received_bytes_total", **who, kind="ActivationBatch", link="lan") == 8
        assert of(found, "emo_certificate_left_seconds", **who, link="lan") == 3 * 86400
        assert of(found, "emo_cache_starved_seconds_total", **who) == 2.5
        assert of(found, "emo_problems_total", **who, problem="updates.refused") == 4
        assert of(found, "emo_cache_age_batches", **who, least="4") == 5


def test_the_run_its_nodes_and_the_observer():
    view = fleet({})
    view.take(Event("cloud", "cloud", 1, NOW, "opened", {"run": "run-1", "round": 2, "devices": ["device-1"]}), NOW)
    row = (1, 0.75, 0.5, 3.0, 1, 1, 0, 1000)
    view.take(RunHistory("run-1", 5, (row,), {"fl": 0.8, "bagged": 0.9, "boosted.edge-1": 0.7, "bytes": 10.0}), NOW)
    view.take(Status("edge-1", "edge", False), NOW)
    view.served({"url": "http://127.0.0.1:8000", "name": "emo", "alive": True, "requests": 12, "latency_ms": 3.5}, NOW)
    found = samples(text(view, NOW + 1))
    device, edge = {"node": "device-1", "tier": "device"}, {"node": "edge-1", "tier": "edge"}
    assert (of(found, "emo_node_alive", **device), of(found, "emo_node_alive", **edge)) == (1, 0)
    assert of(found, "emo_node_last_seen_timestamp_seconds", **device) == NOW
    assert of(found, "emo_node_light", **edge, light="gone") == 1
    assert of(found, "emo_device_info", **device, edge="edge-1") == 1
    lights = {dict(labels)["light"]: value for (name, labels), value in found.items() if name == "emo_devices"}
    assert sum(lights.values()) == 1
    assert set(lights) == {"training", "alive", "late", "out", "refused", "gone"}
    assert of(found, "emo_run_info", run="run-1", phase="done") == 1
    assert (of(found, "emo_run_round"), of(found, "emo_run_rounds")) == (2, 5)
    accuracies = {
        dict(labels)["model"]: value for (name, labels), value in found.items() if name == "emo_accuracy_ratio"
    }
    assert accuracies == {"fl": 0.8, "bagged": 0.9, "boosted.edge-1": 0.7}
    assert of(found, "emo_run_split_learning_bytes") == 1000
    assert (of(found, "emo_endpoint_requests_total"), of(found, "emo_endpoint_latency_seconds")) == (12, 0.0035)
    assert (of(found, "emo_watch_connected"), of(found, "emo_watch_readers")) == (1, 2)
    assert of(found, "emo_watch_refused_total") == 3
    assert of(found, "process_resident_memory_bytes") > 0


def test_the_observer_has_figures_of_its_own():
    view = View(10)
    state = {**view.state(NOW), "watcher": WATCHER}
    own = {"frames.refused": 3, "received_bytes.Report": 900, "tls.days_left.wan": 20, "what.is_this": 1}
    found, me = samples(exposition(state, (), 0, own).decode()), {"node": "watch", "tier": "observer"}
    assert of(found, "emo_problems_total", **me, problem="frames.refused") == 3
    assert of(found, "emo_received_bytes_total", **me, kind="Report", link="wan") == 900
    assert of(found, "emo_certificate_left_seconds", **me, link="wan") == 20 * 86400


def test_before_anything_was_heard():
    found = samples(text(View(10)))
    assert of(found, "emo_run_info", run="", phase="") == 1
    assert not [name for name, _ in found if name.startswith(("emo_node", "emo_accuracy", "emo_endpoint"))]


def test_names_that_nobody_knows_are_counted_and_left_out():
    strange = {f"x{number}" * 3: 1.0 for number in range(100)} | {
        'sent.<script>"': 1, "sent_bytes.Nothing": 1, "cache.age.3": 1, "tls.days_left.\n": 1, "refused.Update": 2,
    }  # fmt: skip
    known, found = samples(text(fleet({}))), samples(text(fleet(strange)))
    new = {key for key in found if key not in known}
    assert {name for name, _ in new} == {"emo_problems_total"}
    assert of(found, "emo_watch_unknown_figures") == 3 * (len(strange) - 1)


def test_series_are_bounded_by_nodes_and_the_table():
    view = fleet(dict.fromkeys(KNOWN, 1.0), nodes=5)
    for number in range(50):
        tell(view, f"stranger-{number}", "device", {"bugs": 1.0})
    found = samples(text(view))
    assert len({dict(labels).get("node") for _, labels in found} - {None, "watch"}) == 5


def test_a_figure_that_its_node_has_stopped_to_tell_is_gone():
    view = fleet({"cache.age.8": 4, "bugs": 2})
    tell(view, "edge-1", "edge", {"bugs": 3}, NOW + 890)
    assert of(samples(text(view)), "emo_cache_age_batches", node="edge-1", tier="edge", least="8") == 4
    tell(view, "edge-1", "edge", {"bugs": 3}, NOW + 910)
    assert of(samples(text(view)), "emo_cache_age_batches", node="edge-1", tier="edge", least="8") is None
    assert of(samples(text(view)), "emo_bugs_total", node="edge-1", tier="edge") == 3


def test_labels_are_escaped():
    view = fleet({})
    view.progress.result = {'boosted."\n\\': 0.5}
    assert of(samples(text(view)), "emo_accuracy_ratio", model='boosted."\n\\') == 0.5


def test_promtool_has_no_complaint():
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    view, names = fleet({}), list(KNOWN)
    for start, node in enumerate(view.nodes.values()):
        tell(view, node.id, node.tier, dict.fromkeys(names[start::3], 1.5), NOW + 1)
    view.take(RunHistory("run-1", 5, ((1, 0.75, 0.5, 3.0, 1, 1, 0, 1000),), {"fl": 0.8, "bagged": 0.9}), NOW)
    view.served({"alive": True, "requests": 12, "latency_ms": 3.5}, NOW)
    done = subprocess.run(
        [promtool, "check", "metrics"], check=False, input=text(view), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert {metric.name for metric, _ in KNOWN.values()} <= {name for name, _ in samples(text(view))}
