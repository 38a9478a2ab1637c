"""The tiers as processes over TLS, watched by another, while their operator changes the CA and every certificate: no round loses a
device, and the page comes back."""

import json
import os
import stat
import sys
import time
import urllib.request
from functools import partial

import pytest
import yaml
from brokers import free_port
from secured import Site

from emo import cli
from emo.security.pki import pem_files
from testbed.processes.child import Child

DEVICES = ("device-01", "device-02")
ROUNDS = 6


def until(reached, said, patience_s=60):
    end = time.monotonic() + patience_s
    while not (found := reached()):
        assert time.monotonic() < end, said()
        time.sleep(0.02)
    return found


class Fleet:
    def __init__(self, folder, site):
        self.folder, self.site, self.children = folder, site, {}
        self.wan, self.lan = site.broker(), site.broker("edge-1")
        model = {"name": "cnn", "width": 0.5, "input": [1, 8, 8], "classes": 10}
        edge = {
            "devices": list(DEVICES),
            "cache": {"dir": str(folder / "cache")},
            "overlay": {"replay_ratio": 0.1},
        }
        rounds = {"rounds": ROUNDS, "min_devices": 2, "quorum": 1.0, "deadline_s": 60}
        cloud = {
            "rounds": rounds,
            "training": {"lr": 0.05},
            "overlays": {"edges": ["edge-1"]},
            "export": {"models": str(folder / "models")},
        }
        self.write("cloud", model, cloud, lan=False)
        self.write("edge-1", model, edge)
        for index, name in enumerate(DEVICES):
            self.write(name, model, {"edge": "edge-1", "partition": {"devices": 2, "index": index}})
        self.page = free_port()
        self.write("watch", None, {"port": self.page, "fleet": str(site.fleet)}, lan=False)

    def write(self, name, model, values, lan=True):
        for link, daemon in {"wan": self.wan, "lan": self.lan}.items():
            if link == "wan" or lan:
                files = self.site.node(name).model_dump(mode="json")
                values = {**values, link: {"port": daemon.port, "tls": files}}
        values = {"id": name, "state_dir": str(self.folder / name), **({"model": model} if model else {}), **values}
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")

    def came_anew(self, name, times):
        return self.metrics(name).get("mqtt.disconnected", 0) >= times

    def start(self, name, command, *configs):
        environ = {key: value for key, value in os.environ.items() if not key.startswith("EMO_")}
        environ |= {"OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
        paths = [str(self.folder / f"{config}.yaml") for config in configs]
        words = [sys.executable, "-m", "emo.cli", command, "--config", *paths]
        self.children[name] = Child(words, self.folder / f"{name}.log", environ)

    def events(self, node, name):
        path = self.folder / node / "events.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return [each for each in found if each["event"] == name]

    def round(self, number):
        """Until it has closed."""
        until(lambda: len(self.events("cloud", "round")) >= number, self.logs)

    def logs(self):
        return "\n".join(f"== {path.name}\n{path.read_text()[-2000:]}" for path in self.folder.glob("*.log"))

    def state(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.page}/api/state", timeout=10) as answer:
            return json.load(answer)

    def metrics(self, name):
        return json.loads((self.folder / name / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture
def fleet(mosquitto_program, tmp_path):
    site = Site(tmp_path, mosquitto_program)
    made = Fleet(tmp_path, site)
    before = os.umask(0)  # nobody helps
    yield made
    os.umask(before)
    for child in made.children.values():
        child.ask()
    for child in made.children.values():
        child.stop(2)
    site.close()


def issuers(site):
    paths = [*site.folder.glob("nodes/*/node.crt"), *site.folder.glob("brokers/*/tls/node.crt")]
    assert len(paths) == 7
    return {pem_files.certificate(path).issuer for path in paths}


def test_another_ca_without_a_dropped_round(fleet):
    site = fleet.site
    (old,) = issuers(site)
    fleet.start("cloud", "cloud", "cloud")
    fleet.start("edge", "edge", "edge-1")
    fleet.start("devices", "device", *DEVICES)
    fleet.start("watch", "watch", "watch")
    fleet.round(1)
    site.rotate()
    site.spread()
    fleet.round(2)
    for name in ("cloud", "edge-1", *DEVICES, "watch"):
        site.renew(name)
    site.renew_brokers()
    assert old not in issuers(site)
    fleet.round(3)
    pause = fleet.folder / "cloud" / "pause"
    pause.touch()  # or the run may be over before the brokers are
    site.rotate("--finish")
    site.spread()
    for daemon in (fleet.wan, fleet.lan):  # from here on nobody comes in with the old one
        daemon.stop()
        daemon.start()
    pause.unlink()
    fleet.round(ROUNDS)
    rounds = fleet.events("cloud", "round")
    assert [(each["round"], sorted(each["members"]), each["left_out"]) for each in rounds] == [
        (number, list(DEVICES), {}) for number in range(1, ROUNDS + 1)
    ]
    until(lambda: fleet.events("cloud", "overlay"), fleet.logs)
    assert all(child.poll() in {None, 0} for child in fleet.children.values()), fleet.logs()
    for name, links in {
        "cloud": ["wan"],
        "watch": ["wan"],
        "edge-1": ["wan", "lan"],
        "device-01": ["wan", "lan"],
    }.items():
        until(partial(fleet.came_anew, name, len(links)), fleet.logs)  # metrics.json is some seconds old
        found = fleet.metrics(name)
        assert found.get("mqtt.publish_refused", 0) == 0, name
        assert all(found[f"tls.days_left.{link}"] == 364 for link in links), name
    assert fleet.metrics("device-01")["sent.ActivationBatch"] > 0
    must_be_private(*(fleet.folder / name for name in ("cloud", "edge-1", *DEVICES, "watch", "cache")))
    until(lambda: fleet.state()["round"] == ROUNDS, fleet.logs)
    state = fleet.state()
    assert state["watcher"]["connected"]
    edges = {node["id"]: node["edge"] for node in state["nodes"] if node["tier"] == "device"}
    assert edges == dict.fromkeys(DEVICES, "edge-1") | {
        "device-03": "edge-2"
    }  # who is in fleet.yaml and never came, too
    assert {"cloud", "edge-1", *DEVICES} <= {node["id"] for node in state["nodes"] if node["last_seen"]}
    assert cli.main(["health", "--connected", "--config", str(fleet.folder / "watch.yaml")]) == 0


def must_be_private(*folders):
    """Weights, activations, counters and what else a node keeps."""
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}
    found = {path: path.stat().st_mode for each in folders for path in each.rglob("*") if path.is_file()}
    assert {".json", ".jsonl", ".h5", ".safetensors"} <= {path.suffix for path in found}
    assert {path: oct(mode) for path, mode in found.items() if mode & 0o077} == {}
