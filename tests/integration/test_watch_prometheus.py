"""A real Prometheus scrapes `emo watch`, reads our alert rules and answers the queries of our dashboard."""

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from brokers import free_port
from watching import Asker, Teller, watching

from cloud_app.watch.figures import KNOWN
from emo.wire.messages import Report, RunHistory, RunState

DOCS = Path(__file__).parents[2] / "docs"
BOARD = json.loads((DOCS / "grafana/emo.json").read_text())


class Prometheus:
    def __init__(self, folder, target):
        program = shutil.which("prometheus")
        if program is None:
            pytest.skip("prometheus is not installed (Debian: prometheus)")
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(DOCS / "prometheus/emo.rules.yml")],
            "scrape_configs": [{"job_name": "emo", "static_configs": [{"targets": [target]}]}],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        options = {
            "config.file": "prometheus.yml",
            "storage.tsdb.path": "data",
            "web.listen-address": f"127.0.0.1:{port}",
        }
        command = [program, *(f"--{name}={value}" for name, value in options.items())]
        self.log = folder / "prometheus.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)

    def get(self, path, **asked):
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(address, timeout=5) as answer:  # HTTPError: it did not understand
            return json.loads(answer.read())["data"]

    def query(self, text):
        return [(each["metric"], float(each["value"][1])) for each in self.get("query", query=text)["result"]]

    def until(self, look, within_s=20):
        until = time.monotonic() + within_s
        while True:
            try:
                if found := look():
                    return found
            except OSError:
                pass  # it starts
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.1)

    def close(self):
        self.process.terminate()
        self.process.wait(20)


def tell(teller, asker, names):
    """One report after the other: a queue keeps only the newest."""
    edge = "edge-1" if teller.role == "device" else ""
    for at in range(0, len(names), 25):
        figures = dict.fromkeys(names[at : at + 25], 1.5)
        teller.publish(Report(teller.name, teller.role, "run-1", time.time(), edge, figures=figures))
        asker.until(lambda _, last=list(figures)[-1]: last in known(asker, teller.name))


def known(asker, node):
    status, _, body = asker(f"/api/nodes/{node}")
    return json.loads(body)["figures"] if status == 200 else {}


@pytest.fixture(scope="module")
def prometheus(broker, tmp_path_factory):
    place = broker.model_copy(update={"root": "scraped"})
    folder = tmp_path_factory.mktemp("prometheus")
    with watching(folder, wan=place.model_dump(mode="json", exclude_none=True)) as (_, line):
        asker = Asker(line.rpartition(" ")[2])
        made = Prometheus(folder, line.rpartition("//")[2].strip("/"))
        tellers = [
            Teller(place, name, role) for name, role in (("cloud", "cloud"), ("edge-1", "edge"), ("device-1", "device"))
        ]
        try:
            one_each = {metric.name: figure for figure, (metric, _) in KNOWN.items()}
            for teller in tellers:
                tell(teller, asker, [*one_each.values(), "updates.refused"])
            tellers[0].publish(RunState("run-1", 1, 3, "training"))
            tellers[0].publish(RunHistory("run-1", 3, ((1, 0.75, 0.5, 2.0, 2, 2, 0, 4096),)))
            asker.until(lambda state: state["accuracy"] == 0.75 and len(state["nodes"]) == 3)
            made.until(lambda: made.query("emo_accuracy_ratio"))
            yield made
        finally:
            for teller in tellers:
                teller.close()
            made.close()


def test_it_scrapes_every_metric(prometheus):
    names = {metric.name for metric, _ in KNOWN.values()}
    there = prometheus.until(lambda: (found := set(prometheus.get("label/__name__/values"))) >= names and found)
    assert {"emo_node_alive", "emo_watch_connected", "process_resident_memory_bytes", "up"} <= there
    target = prometheus.get("targets")["activeTargets"][0]
    assert (target["health"], target["lastError"]) == ("up", "")
    labels = {"node": "device-1", "tier": "device", "light": "alive", "job": "emo"}
    found = prometheus.query('emo_node_light{node="device-1"}')
    assert labels.items() <= found[0][0].items()
    assert found[0][1] == 1
    assert prometheus.query('emo_received_bytes_total{node="watch",tier="observer",kind="Report"}')[0][1] > 1000


def test_it_reads_our_rules_and_an_alert_is_pending(prometheus):
    prometheus.until(lambda: prometheus.query('ALERTS{alertname="EmoCertificateExpires",node="edge-1",tier="edge"}'))
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) > 10
    assert {rule["health"] for rule in rules} == {"ok"}


def test_it_answers_every_query_of_the_dashboard(prometheus):
    asked = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", ())]
    prometheus.until(lambda: prometheus.query("rate(emo_sent_bytes_total[1m])"))  # two scrapes
    empty = {
        query for query in asked if not prometheus.query(query.replace("$__rate_interval", "1m").replace("$node", ".*"))
    }
    # Nothing was lost or served here, nobody is away, and the run has no end yet.
    absent = ("emo_run_left_seconds", "emo_endpoint_", "emo_request", "increase(", 'light=~"late|')
    assert [query for query in empty if not any(name in query for name in absent)] == []
    assert len(asked) > 50
