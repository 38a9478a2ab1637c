"""`make fleet-test`: the playbooks on this machine, from bare folders to a fleet that trains over TLS, and on.

Every host of the inventory is a folder (emo_root), the container engine is process_docker.py; all else is the roles'
own work: the real `emo`, the real Mosquitto, with the files, owners and paths that a container has. What is not run
here is listed in ansible/README.md. The tests build on each other: pytest -x.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import playbooks
import pytest
import yaml
from brokers import free_port

HOSTS = ["cloud-1", "edge-1", "edge-2", "pi-01", "pi-02", "jetson-01"]
DEVICES = HOSTS[3:]
ROUNDS = 500  # of EPOCHS each: well more than there are before the last play that must not end one
EPOCHS = 8


def release(letter, *broken):
    """One of each image. `broken`: the kinds whose image cannot start."""
    kinds = ["emo-device", "emo-edge", "emo-coordinator", "emo-endpoint", "eclipse-mosquitto"]
    tags = {"emo-device": "1", **{f"emo-{kind}": "broken" for kind in broken}}
    images = {kind: f"registry.test/{kind}:{tags.get(kind, '1')}@sha256:{letter * 64}" for kind in kinds}
    return {
        f"emo_image_{kind.removeprefix('emo-').replace('eclipse-mosquitto', 'broker')}": image
        for kind, image in images.items()
    }


class Fleet:
    def __init__(self, folder):
        self.folder, self.home = folder, folder / "ansible"
        self.inventory = folder / "inventory" / "hosts.yml"
        self.ports = {host: free_port() for host in HOSTS[:3]}
        self.endpoint, self.page = free_port(), free_port()
        docker = folder / "docker"
        script = Path(__file__).with_name("process_docker.py")
        (folder / "engine").mkdir()
        docker.write_text(f'#!/bin/sh\nPROCESS_DOCKER={folder}/engine exec {sys.executable} {script} "$@"\n')
        docker.chmod(0o755)
        self.values = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "emo_root": f"{folder}/nodes/{{{{ inventory_hostname }}}}",
            "emo_docker": str(docker),
            "emo_address": "localhost",
            "emo_shared_data": True,
            "emo_config_common": {"model": {"name": "cnn", "input": [1, 8, 8], "classes": 10}},
            "emo_config_data": {"name": "digits"},
            "emo_service_settle_s": 3,
            "emo_endpoint": {"port": self.endpoint},
            # Where a container would publish them, this engine's processes listen themselves.
            "emo_watch_config": {
                "host": "127.0.0.1",
                "port": self.page,
                "endpoint": {"url": f"http://127.0.0.1:{self.endpoint}"},
            },
            **({} if os.geteuid() == 0 else {"emo_uid": os.geteuid(), "emo_broker_uid": os.geteuid()}),
        }
        for host in HOSTS:
            boot = folder / "nodes" / host / "boot" / "firmware"
            boot.mkdir(parents=True)
            if host.startswith("pi-"):
                (boot / "cmdline.txt").write_text("console=tty1 root=PARTUUID=0-02 rootwait\n")
        self.write("a")

    def write(self, letter, *broken):
        """The inventory, with this release; the devices' image of release b is carried."""
        brokers = {host: {"emo_broker_port": at, "broker_listen_port": at} for host, at in self.ports.items()}
        edges = {"edge-1": brokers["edge-1"] | {"emo_edge_devices": "hall_a"},
                 "edge-2": brokers["edge-2"] | {"emo_edge_devices": "hall_b"}}  # fmt: skip
        rounds = {"rounds": ROUNDS, "min_devices": 3, "deadline_s": 120}
        tier = {"rounds": rounds, "training": {"lr": 0.05, "epochs": EPOCHS}}
        children = {
            "cloud": {"hosts": {"cloud-1": brokers["cloud-1"]}, "vars": {"emo_config_tier": tier}},
            "edges": {"hosts": edges, "vars": {"emo_config_tier": {"overlay": {"replay_ratio": 1.0}}}},
            "devices": {"children": {"raspberry_pi": {"hosts": {"pi-01": {}, "pi-02": {}}},
                                     "jetson": {"hosts": {"jetson-01": {}}}}},
            "hall_a": {"hosts": {"pi-01": {}, "pi-02": {}}},
            "hall_b": {"hosts": {"jetson-01": {}}},
        }  # fmt: skip
        self.inventory.parent.mkdir(exist_ok=True)
        self.release = release(letter, *broken)
        values = self.values | self.release
        if letter == "b":
            self.release["emo_image_device"] = "emo-device:2"
            (self.folder / "device.tar").write_text("emo-device:2\n")
            values |= self.release | {"emo_image_archives": {"emo-device:2": str(self.folder / "device.tar")}}
        self.inventory.write_text(yaml.safe_dump({"all": {"vars": values, "children": children}}))

    def play(self, book, *args, ok=True):
        started = time.monotonic()
        played = playbooks.play(book, self.inventory, self.home, *args)
        print(f"{book} {' '.join(args)}: {time.monotonic() - started:.0f} s, changed {played.changed}")
        assert (played.code == 0) == ok, played.text
        return played

    def tree(self):
        """Every file and folder of the hosts: what it is, whose, and when it was changed. A running fleet's come and go."""
        found = {}
        for top in ("nodes", "inventory"):
            for folder, folders, files in os.walk(self.folder / top):
                for path in (f"{folder}/{name}" for name in folders + files):
                    with contextlib.suppress(FileNotFoundError):
                        about = Path(path).lstat()
                        found[path] = (about.st_mode, about.st_uid, about.st_mtime_ns, about.st_size)
        return found

    def at(self, host, *parts):
        return self.folder.joinpath("nodes", host, *parts)

    def events(self, host, kind):
        with contextlib.suppress(FileNotFoundError):
            lines = self.at(host, "var/lib/emo/state/events.jsonl").read_text().splitlines()
            return [event for event in map(json.loads, lines) if event["event"] == kind]
        return []

    def state(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.page}/api/state", timeout=10) as answer:
            return json.load(answer)

    def goes_on(self):
        rounds = len(self.events("cloud-1", "round"))
        assert rounds < ROUNDS, "the run is over: more ROUNDS"
        self.wait(lambda: len(self.events("cloud-1", "round")) > rounds)

    def wait(self, what, patience_s=300):
        until = time.monotonic() + patience_s
        while not what():
            assert time.monotonic() < until, "it did not come"
            time.sleep(0.5)

    def runs(self, host, release):
        """Is it what was recorded as healthy here?"""
        images = json.loads(self.at(host, "opt/emo/deployed.json").read_text())["images"]
        return images == {kind: release[f"emo_image_{kind}"] for kind in images}

    def compose(self, host, *args):
        command, place = [self.values["emo_docker"], "compose", *args], self.at(host, "opt/emo")
        return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def fleet():
    if subprocess.run(["unshare", "--mount", "--map-root-user", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespaces for this user: run it as root")
    folder = Path(tempfile.mkdtemp(prefix="emo-fleet-"))
    folder.chmod(0o755)  # the containers' users pass through
    fleet = Fleet(folder)
    try:
        yield fleet
    finally:
        for host in HOSTS:
            if fleet.at(host, "opt/emo/.env").exists():
                fleet.compose(host, "down")
        shutil.rmtree(folder)


SOME = ["cloud-1", "edge-1", "pi-01"]  # one of each tier
NO_ENGINE = ("-e", "emo_engine_start=false", "--limit", ",".join(SOME))


def test_check_mode_on_bare_hosts_changes_nothing(fleet):
    before = fleet.tree()
    fleet.play("site", "--check", *NO_ENGINE)
    assert fleet.tree() == before


def test_the_first_run_converges(fleet):
    played = fleet.play("site", *NO_ENGINE)
    assert sorted(played.changed) == SOME


def test_check_mode_on_a_converged_fleet_changes_nothing(fleet):
    before = fleet.tree()
    assert fleet.play("site", "--check", *NO_ENGINE).changed == {}
    assert fleet.tree() == before


def test_a_pi_gets_memory_cgroups_once(fleet):
    text = fleet.at("pi-01", "boot/firmware/cmdline.txt").read_text()
    assert text == "console=tty1 root=PARTUUID=0-02 rootwait cgroup_enable=memory\n"


def test_the_second_run_changes_nothing_but_that_the_fleet_starts(fleet):
    before = fleet.tree()
    fleet.play("site")
    after = {path for path, about in fleet.tree().items() if before.get(path) != about}
    nodes = [Path(path).relative_to(fleet.folder / "nodes").parts for path in after if "/nodes/" in path]
    made = {parts[1:3] for parts in nodes if parts[0] in SOME}
    assert made == {("opt", "emo"), ("var", "lib")}, after  # deployed.json; what the tiers themselves write


def test_it_trains_over_tls(fleet):
    fleet.wait(lambda: len(fleet.events("cloud-1", "round")) >= 2)
    for host in HOSTS[:3]:
        assert "require_certificate true" in fleet.at(host, "etc/emo-broker/mosquitto.conf").read_text()


def test_keys_stay_on_their_hosts_and_are_read_by_their_users_only(fleet):
    keys = {path for path in fleet.folder.rglob("*.key") if path.name != "ca.key"}
    assert {path.relative_to(fleet.folder / "nodes").parts[0] for path in keys} == set(HOSTS)
    assert len(keys) == len(HOSTS) + 4  # three brokers, the observer
    assert {oct(path.stat().st_mode & 0o777) for path in keys} == {"0o400"}
    assert len({path.read_bytes() for path in keys}) == len(keys)


def test_status_says_how_every_host_fares(fleet):
    text = fleet.play("status").text
    for host in HOSTS:
        assert f"{host}: healthy" in text
    assert "observer watch: healthy; its page: http://127.0.0.1:8080/ on cloud-1" in text
    assert "No certificate ends within 30 days" in text


def test_the_page_shows_the_fleet_over_tls(fleet):
    state = fleet.state()
    assert {node["id"] for node in state["nodes"]} >= set(HOSTS)
    assert state["watcher"]["connected"]
    assert state["rounds"] == ROUNDS


def test_an_upgrade_reaches_every_host_between_rounds(fleet):
    fleet.write("b")
    fleet.play("upgrade")
    for host in HOSTS:
        assert fleet.runs(host, fleet.release), host
    fleet.goes_on()


def test_a_rollback_brings_the_release_before_and_only_once(fleet):
    fleet.play("rollback")
    for host in HOSTS:
        assert fleet.runs(host, release("a")), host
    again = fleet.play("rollback", "--limit", "pi-01", ok=False)
    assert "holds no release before the present one" in again.text
    assert not fleet.at("cloud-1", "var/lib/emo/state/pause").exists()
    another = fleet.play("site", "--limit", "pi-01", ok=False)
    assert "Run playbooks/upgrade.yml" in another.text


def test_an_upgrade_that_fails_is_taken_back_and_goes_no_further(fleet):
    fleet.write("c", "device")
    played = fleet.play("upgrade", "-e", "emo_service_health_s=60", "--limit", "devices", ok=False)
    assert "the release before runs again" in played.text
    assert "this release cannot start" in played.text
    for host in DEVICES:
        assert fleet.runs(host, release("a")), host
        assert fleet.compose(host, "ps", "--quiet", "--status", "running").stdout == "device\n"
    fleet.goes_on()  # nothing is paused any more


def test_the_ca_is_changed_under_the_running_fleet(fleet):
    fleet.write("a")
    before = {path: path.read_text() for path in fleet.folder.glob("nodes/*/etc/emo*/**/node.crt")}
    assert len(before) == len(HOSTS) + 4
    fleet.play("rotate_certs", "-e", "emo_new_ca=true")
    assert all(path.read_text() != text for path, text in before.items())
    for path in fleet.folder.glob("nodes/*/etc/emo*/**/ca.crt"):
        assert path.read_text().count("BEGIN CERTIFICATE") == 1
    fleet.goes_on()


def test_no_update_of_any_round_was_lost_on_the_way(fleet):
    fleet.wait(lambda: fleet.events("cloud-1", "round")[-1]["round"] == ROUNDS, 1700)
    last = {event["round"]: event for event in fleet.events("cloud-1", "round")}
    assert sorted(last) == list(range(1, ROUNDS + 1))
    assert [number for number, event in last.items() if event["updates"] != len(DEVICES)] == []


def test_the_model_is_served_at_the_end(fleet):
    written = fleet.at("cloud-1", "var/lib/emo/state/result.json")
    fleet.wait(written.exists, 900)  # the edges train to their end
    result = json.loads(written.read_text())
    assert sorted(result["edges"]) == ["edge-1", "edge-2"]
    assert all(edge["steps"] > 0 for edge in result["edges"].values())
    sample = fleet.at("cloud-1", "var/lib/emo/state/sample.png")
    ask = [playbooks.BIN / "emo", "predict", sample, "--url", f"http://127.0.0.1:{fleet.endpoint}", "--json"]
    fleet.wait(lambda: subprocess.run(ask, check=False, capture_output=True).returncode == 0, 60)


def test_a_playbook_repeated_after_the_run_begins_no_other(fleet):
    run = fleet.events("cloud-1", "round")[-1]["run"]
    assert fleet.play("site").changed == {}
    assert fleet.compose("cloud-1", "ps", "--quiet", "--status", "running", "coordinator").stdout == ""
    assert fleet.state()["phase"] == "done"
    assert fleet.events("cloud-1", "round")[-1]["run"] == run


def test_a_device_that_is_taken_out_is_refused_by_every_broker(fleet):
    fleet.play("teardown", "--limit", "pi-02", ok=False)  # not meant
    tls = fleet.folder / "tls"
    shutil.copytree(fleet.at("pi-02", "etc/emo/tls"), tls)
    fleet.play("teardown", "--limit", "pi-02", "-e", "emo_teardown=true")
    assert not fleet.at("pi-02", "etc/emo").exists()
    fleet.play("rotate_certs", "--limit", "!pi-02")
    for broker, at in fleet.ports.items():
        found = subprocess.run(
            ["openssl", "s_client", "-connect", f"localhost:{at}", "-CAfile", tls / "ca.crt",
             "-cert", tls / "node.crt", "-key", tls / "node.key", "-brief", "-ign_eof"],  # or it may go before it is told
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
        assert "certificate revoked" in found.stderr, (broker, found.stderr)


def test_who_was_taken_out_comes_back_by_the_operators_word_and_with_another_key(fleet):
    refused = fleet.play("site", "--limit", "pi-02", ok=False)
    assert "add -e emo_readmit=pi-02" in refused.text
    fleet.play("site", "--limit", "pi-02", "-e", "emo_readmit=pi-02")
    keys = [fleet.folder / "tls" / "node.key", fleet.at("pi-02", "etc/emo/tls/node.key")]
    assert keys[0].read_bytes() != keys[1].read_bytes()
