"""The dashboard and the alert rules ask for nothing that does not exist: every metric and label of a query is one that is
served."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from cloud_app.serving.http import prometheus
from cloud_app.serving.metrics import Stats
from cloud_app.watch.figures import KNOWN
from cloud_app.watch.metrics import exposition
from cloud_app.watch.view import View
from emo.wire.messages import Report, RunHistory, RunState, Status

DOCS = Path(__file__).parents[4] / "docs"
BOARD = json.loads((DOCS / "grafana/emo.json").read_text())
RULES = yaml.safe_load((DOCS / "prometheus/emo.rules.yml").read_text())
WORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "offset", "bool"}
GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')


@pytest.fixture(scope="module")
def served():
    """Metric -> its labels, of all that emo watch and the endpoint can say."""
    view, names = View(10), list(KNOWN)
    for start, (node, role) in enumerate((("cloud", "cloud"), ("edge-1", "edge"), ("device-1", "device"))):
        view.take(Status(node, role, True, 10), 0.0)
        for first in range(start, len(names), 180):
            figures = dict.fromkeys(names[first : first + 180 : 3], 1.0)
            view.take(Report(node, role, "run-1", 1.0, figures=figures), 0.0)
    view.take(RunState("run-1", 2, 5, "training"), 0.0)
    view.take(RunHistory("run-1", 5, ((1, 0.75, 0.5, 3.0, 1, 1, 0, 1000), (2, 0.8, 0.5, 3.0, 1, 1, 0, 1000))), 0.0)
    view.served({"alive": True, "requests": 12, "latency_ms": 3.5}, 0.0)
    watcher = {"id": "watch", "version": "0", "connected": True, "changed": 0.0, "refused": 0}
    state = {**view.state(0.0), "watcher": watcher, "seconds_left": 3}
    stats = Stats()
    stats.request(200, 3_000_000, 1)
    stats.ran(1, 1, 2_000_000)
    texts = exposition(state, view.nodes.values(), 0), prometheus.exposition([("emo", 1, stats)], {})
    found = {}
    for text in texts:
        for family in text_string_to_metric_families(text.decode()):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def panels(of=BOARD):
    for panel in of["panels"]:
        yield panel
        yield from panels(panel) if panel.get("panels") else ()


def queries():
    """(where, PromQL, labels that its legend and texts name)."""
    for panel in panels():
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"], set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
    for group in RULES["groups"]:
        for rule in group["rules"]:
            texts = " ".join(rule["annotations"].values())
            yield rule["alert"], rule["expr"], set(re.findall(r"\$labels\.(\w+)", texts))


def parts(query):
    """Of PromQL: ({metric: labels that its selectors name}, labels of groupings)."""
    groupings = {label for group in GROUPING.findall(query) for label in re.findall(r"\w+", group)}
    plain = re.sub(r"\[[^\]]*\]|\boffset \w+", "", TEXT.sub('""', GROUPING.sub("", query)))
    selected = {}
    for name, labels in re.findall(r"([a-zA-Z_:][\w:]*)\s*(?:\{([^}]*)\})?(?!\w|\s*\()", plain):
        if name not in WORDS:
            selected.setdefault(name, set()).update(re.findall(r"(\w+)\s*[=!]", labels))
    return selected, groupings


def test_the_parts_of_a_query():
    query = 'topk(3, sum by (kind, node) (rate(a_b{x="y{z}",w!~"."}[5m])) > 0) / on (q) c unless c{v="1"} offset 15m'
    assert parts(query) == ({"a_b": {"x", "w"}, "c": {"v"}}, {"kind", "node", "q"})


@pytest.mark.parametrize(("where", "query", "shown"), list(queries()))
def test_a_query_names_metrics_and_labels_that_are_served(served, where, query, shown):
    selected, groupings = parts(query)
    assert selected, where
    assert {name for name in selected if name not in served} == set()
    for name, labels in selected.items():
        assert labels <= served[name], name
    every = set.union(*(served[name] for name in selected))
    assert groupings <= every
    by = re.search(r"\bby \(([^)]*)\)", query)
    assert shown <= (set(re.findall(r"\w+", by.group(1))) if by else every)


def test_promtool_reads_every_query(tmp_path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    asked = [query.replace("$__rate_interval", "1m").replace("$node", ".*") for _, query, _ in queries()]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(asked)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    command = [promtool, "check", "rules", "--lint=none", tmp_path / "rules.yml"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def test_the_dashboard_is_whole():
    every = list(panels())
    assert len({panel["id"] for panel in every}) == len(every)
    places = set()
    for panel in every:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & places, panel["title"]
        places |= cells
    variables = {each["name"]: each for each in BOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(every))) <= {*variables, "__rate_interval", "__all"}
    for panel in every:
        sources = [panel, *panel.get("targets", ())] if panel["type"] != "row" else []
        assert all(each["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for each in sources)


def test_the_node_of_the_dashboard_is_a_label(served):
    query = next(each for each in BOARD["templating"]["list"] if each["name"] == "node")["query"]["query"]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", query).groups()
    assert label in served[metric]
