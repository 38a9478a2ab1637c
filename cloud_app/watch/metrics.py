"""What an observer knows, in Prometheus's text format: every counter and gauge of every node, by node; lights, rounds and
accuracies; and how the observer itself does.

Written line by line: of 1,000 nodes it is four times as quick as through Prometheus's library (bench.watch.metrics), and the page
waits meanwhile.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, get_args

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from cloud_app.watch.figures import FIGURES, KNOWN
from cloud_app.watch.node_state import Light, Node

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_TOLD_S = 900.0  # a node tells every figure again within minutes, so one that is older is a gauge that is gone

_NONE: Mapping[str, float] = MappingProxyType({})

Sample = tuple[Mapping[str, str], float | None]  # labels, and a value if there is one
Family = tuple[str, str, Iterable[Sample]]  # name, help, samples


def exposition(
    state: Mapping[str, Any], nodes: Iterable[Node], readers: int, own: Mapping[str, float] = _NONE
) -> bytes:
    """`state`: as GET /api/state answers it; `nodes`: those of the state; `readers`: pages that listen now; `own`: the
    observer's figures, from its journal."""
    lines: list[str] = []
    figures = {metric.name: list[str]() for metric in FIGURES.values()}
    unknown = sum(_figures(node.id, node.tier, _lasting(node), figures) for node in nodes)
    _figures(state["watcher"]["id"], "observer", own.items(), figures)
    for metric in FIGURES.values():
        if figures[metric.name]:
            lines += [*_head(metric.name, metric.help), *figures[metric.name]]
    for name, text, samples in (*_of_nodes(state["nodes"]), *_of_run(state), *_of_watcher(state, readers, unknown)):
        written = [f"{name}{_labels(labels)} {float(value)!r}" for labels, value in samples if value is not None]
        if written:
            lines += [*_head(name, text), *written]
    registry = CollectorRegistry()  # not the library's own, which tests and an endpoint in this process would share
    ProcessCollector(registry=registry)
    process: bytes = generate_latest(registry)
    return "".join(f"{line}\n" for line in lines).encode() + process


def _lasting(node: Node) -> Iterable[tuple[str, float]]:
    """The figures that the node still tells."""
    oldest = max(node.told.values(), default=0.0) - _TOLD_S
    return ((name, value) for name, value in node.figures.items() if node.told[name] >= oldest)


def _figures(node: str, tier: str, figures: Iterable[tuple[str, float]], lines: Mapping[str, list[str]]) -> int:
    """Adds to `lines`, by metric. Returns how many of the figures have no metric."""
    unknown = 0
    who = f'{{node="{_escaped(node)}",tier="{_escaped(tier)}"'
    for name, value in figures:
        known = KNOWN.get(name)
        if known is None:
            unknown += 1
        else:
            metric, labels = known
            lines[metric.name].append(f"{metric.name}{who}{labels}}} {value * metric.scale!r}")
    return unknown


def _of_nodes(nodes: Iterable[Mapping[str, Any]]) -> Iterator[Family]:
    who = [({"node": node["id"], "tier": node["tier"]}, node) for node in nodes]
    yield "emo_node_alive", "1: the node is there; 0: it has gone.", [(me, node["alive"]) for me, node in who]
    text = "When the node was last heard of."
    yield "emo_node_last_seen_timestamp_seconds", text, [(me, node["last_seen"]) for me, node in who]
    text = "1, for the light that the page shows: training, alive, late, out, refused or gone."
    yield "emo_node_light", text, [({**me, "light": node["light"]}, 1) for me, node in who]
    text = "1, for each device and the edge that it sends to."
    yield "emo_device_info", text, [({**me, "edge": node["edge"]}, 1) for me, node in who if node["tier"] == "device"]


def _of_run(state: Mapping[str, Any]) -> Iterator[Family]:
    names = {"run": state["run"] or "", "phase": state["phase"] or ""}
    yield "emo_run_info", "1, for the run that is shown and its phase.", [(names, 1)]
    yield "emo_run_round", "The current round, from 1.", [({}, state["round"])]
    yield "emo_run_rounds", "How many rounds there will be.", [({}, state["rounds"])]
    yield "emo_run_left_seconds", "Until the run is over, estimated.", [({}, state["seconds_left"])]
    missing = (state["open"] or {}).get("missing_count", 0)
    yield "emo_run_missing_devices", "Devices that the open round waits for.", [({}, missing)]
    accuracies = {"fl": state["accuracy"]} | {
        name: value
        for name, value in state["result"].items()
        if name in {"fl", "bagged", "served"} or name.startswith("boosted.")
    }
    text = "Accuracy: fl as measured last; of the exported model fl, bagged (the ensemble), boosted.EDGE and served."
    yield "emo_accuracy_ratio", text, [({"model": name}, value) for name, value in accuracies.items()]
    lights = Counter(node["light"] for node in state["nodes"] if node["tier"] == "device")
    yield "emo_devices", "Devices by light.", [({"light": light}, lights[light]) for light in get_args(Light)]
    sums = {name: value for name, value in state["bytes"].items() if name != "sfl"}
    text = "Bytes that the nodes have sent in this run: fl, activations, reports."
    yield "emo_run_bytes", text, [({"part": name}, value) for name, value in sums.items()]
    text = "Bytes that split learning would have sent in this run."
    yield "emo_run_split_learning_bytes", text, [({}, state["bytes"].get("sfl"))]
    sent = [({"what": what}, state["sent"].get(what)) for what in ("offered", "sent")]
    yield "emo_run_batches", "Activation batches that devices could have sent in this run, and have sent.", sent
    if (endpoint := state["endpoint"]) is not None:
        yield "emo_endpoint_alive", "1: the endpoint answers.", [({}, endpoint.get("alive"))]
        yield (
            "emo_endpoint_requests_total",
            "Requests that the endpoint has answered.",
            [({}, endpoint.get("requests"))],
        )
        text = "How long the endpoint takes for a request, on the mean of the last ones."
        latency = endpoint.get("latency_ms")
        yield "emo_endpoint_latency_seconds", text, [({}, None if latency is None else latency / 1000)]


def _of_watcher(state: Mapping[str, Any], readers: int, unknown: int) -> Iterator[Family]:
    watcher = state["watcher"]
    me = {"node": watcher["id"], "version": watcher["version"]}
    yield "emo_watch_info", "1, for the observer that answers here.", [(me, 1)]
    yield "emo_watch_connected", "1: the observer is connected to its broker.", [({}, watcher["connected"])]
    text = "When emo_watch_connected changed last."
    yield "emo_watch_connection_changed_timestamp_seconds", text, [({}, watcher["changed"])]
    text = "Messages and nodes that are not shown: no members, or too many."
    yield "emo_watch_refused_total", text, [({}, watcher["refused"])]
    yield "emo_watch_readers", "Pages that listen for changes now.", [({}, readers)]
    yield "emo_watch_unknown_figures", "Figures of nodes that have no metric here, and are left out.", [({}, unknown)]


def _head(name: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}"


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}" if labels else ""


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
