"""The playbooks, without running them on anything: yamllint, syntax, and what an inventory that cannot work is told.

A whole converge is `make fleet-test` (converge.py).
"""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import playbooks
import pytest
import yaml
from playbooks import ANSIBLE, BIN

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ansible") is None or importlib.util.find_spec("ansiblelint") is None,
    reason="Ansible and its linters are not installed here: make setup",
)
EXAMPLE = ANSIBLE / "inventories" / "example"
DIGEST = "sha256:" + "1" * 64
IMAGES = {
    f"emo_image_{kind}": f"registry.test/{kind}@{DIGEST}"
    for kind in ("device", "edge", "coordinator", "endpoint", "broker")
}
GOOD = {"emo_config_common": {"model": {"name": "cnn"}}, "emo_config_data": {"name": "digits"}, **IMAGES}


def run(folder, *command):
    return subprocess.run(
        [BIN / command[0], *command[1:]], cwd=ANSIBLE, env=playbooks.environ(folder), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def preflight(folder, values, children, *args):
    """What each host is told: {host: text}; empty when the inventory is good."""
    inventory = folder / "hosts.yml"
    values = {"ansible_connection": "local"} | values
    inventory.write_text(yaml.safe_dump({"all": {"vars": values, "children": children}}))
    played = playbooks.play("preflight", inventory, folder, *args)
    assert (played.code == 0) == (not told(played)), played.text
    return told(played)


def small(**values):
    """A fleet of one edge and two devices; `values` of the edge."""
    return {
        "cloud": hosts("cloud-1"),
        "edges": hosts("edge-1", emo_edge_devices="hall_a", **values),
        "devices": hosts("pi-01", "pi-02"),
        "hall_a": hosts("pi-01", "pi-02"),
    }


def told(played):
    found = re.findall(r"^fatal: \[(.+?)\]: FAILED! => \n((?: .*\n)+)", played.text, re.MULTILINE)
    return {host: " ".join(yaml.safe_load(text)["msg"].split()) for host, text in found}


def hosts(*names, **values):
    return {"hosts": {name: dict(values) for name in names}}


def test_an_inventory_that_sets_become_for_all_sets_it_not_for_the_controller(tmp_path):
    asked = ("ansible-inventory", "-i", EXAMPLE, "--playbook-dir", "playbooks", "--host")
    become = {host: json.loads(run(tmp_path, *asked, host).stdout)["ansible_become"] for host in ("pi-01", "localhost")}
    assert become == {"pi-01": True, "localhost": False}


def test_yamllint_has_nothing_to_say(tmp_path):
    found = run(tmp_path, "yamllint", "--strict", ".")
    assert found.returncode == 0, found.stdout


def test_every_playbook_can_be_read(tmp_path):
    books = sorted(str(path) for path in (ANSIBLE / "playbooks").glob("*.yml"))
    assert {Path(book).stem for book in books} >= {
        "site",
        "upgrade",
        "rollback",
        "status",
        "rotate_certs",
        "teardown",
    }
    found = run(tmp_path, "ansible-playbook", "-i", EXAMPLE, "--syntax-check", *books)
    assert found.returncode == 0, found.stderr


def test_every_role_says_which_variables_it_takes():
    for role in sorted((ANSIBLE / "roles").iterdir()):
        specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]
        options = [option for spec in specs.values() for option in spec["options"].items()]
        assert all(option["description"] for _, option in options), role.name
        defaults = role / "defaults" / "main.yml"
        if defaults.exists():
            values = yaml.safe_load(defaults.read_text())
            assert set(values) <= {name for name, _ in options}, role.name
            said = {name: option["default"] for name, option in options if "default" in option}
            assert said == {name: values[name] for name in said}, role.name
        points = {path.stem for path in (role / "tasks").glob("*.yml")}
        assert set(specs) <= points, role.name


def test_the_example_lacks_nothing_but_the_images(tmp_path):
    played = playbooks.play("preflight", EXAMPLE, tmp_path)
    wrong = re.findall(r"^ +(?:msg: ')?((?:cloud|edge|pi|jetson)-\d+: .*)$", played.text, re.MULTILINE)
    assert played.code != 0
    assert len(played.hosts) == 34  # and the controller
    assert len(wrong) == 3 + 2 * 2 + 30
    assert all(": emo_image_" in line for line in wrong), wrong


def test_devices_on_no_edge_or_on_two_and_bad_ids_are_named_with_the_remedy(tmp_path):
    bad = ["pi+03", "pi#04", "pi/05"]
    children = {
        "cloud": hosts("cloud-1"),
        "edges": {"hosts": {"edge-1": {"emo_edge_devices": "hall_a"}, "edge-2": {"emo_edge_devices": "hall_b"},
                            "edge-3": {}, "edge-4": {"emo_edge_devices": "hall_c"}}},
        "devices": hosts("pi-01", "pi-02", *bad),
        "raspberry_pi": hosts("pi-01"),
        "jetson": hosts("pi-01"),
        "hall_a": hosts("pi-01", *bad),
        "hall_b": hosts("pi-01"),
        "hall_c": hosts("edge-4"),
        "elsewhere": hosts("nas"),
    }  # fmt: skip
    said = preflight(tmp_path, GOOD, children)
    assert sorted(said) == sorted(["edge-3", "edge-4", "pi-01", "pi-02", "nas", *bad])
    assert "pi-01: belongs to edge-1 and edge-2. Put it into exactly one" in said["pi-01"]
    assert "pi-01: is in raspberry_pi and in jetson" in said["pi-01"]
    assert "pi-02: belongs to no edge. Put it into exactly one" in said["pi-02"]
    assert "edge-3: emo_edge_devices is not set" in said["edge-3"]
    assert "holds edge-4, no devices" in said["edge-4"]
    assert "nas: is in none of cloud, edges and devices" in said["nas"]
    for host in bad:
        assert f"{host}: a host's name in the inventory is its id" in said[host]
        assert "Rename it in the inventory" in said[host]


def test_missing_variables_and_images_that_may_change_are_named_with_the_remedy(tmp_path):
    children = {
        "cloud": hosts("cloud-1"),
        "edges": hosts("edge-1", emo_edge_devices="hall_a"),
        "devices": hosts("pi-01", "pi-02", "pi-03"),
        "hall_a": hosts("pi-01", "pi-02", "pi-03"),
    }
    children["devices"]["hosts"]["pi-01"] = {"emo_image_device": "registry.test/device:latest"}
    children["devices"]["hosts"]["pi-02"] = {"emo_image_device": "device:0.2.0"}
    children["devices"]["hosts"]["pi-03"] = {"emo_image_device": "device:0.2.1"}
    values = {key: value for key, value in GOOD.items() if key not in {"emo_image_edge", "emo_config_data"}}
    said = preflight(tmp_path, values | {"emo_image_archives": {"device:0.2.0": "device.tar"}}, children)
    for host in ("cloud-1", "edge-1", "pi-01", "pi-02"):
        assert f"{host}: emo_config_data is not set. Set it in group_vars/all/main.yml" in said[host]
    assert "edge-1: emo_image_edge is not set. Set it in group_vars/all/images.yml" in said["edge-1"]
    assert "pi-01: emo_image_device is registry.test/device:latest. Name it by the digest" in said["pi-01"]
    assert "emo_image_device" not in said["pi-02"]  # carried
    assert "pi-03: emo_image_device is device:0.2.1" in said["pi-03"]


def test_an_inventory_without_hosts_is_no_success(tmp_path):
    folder = tmp_path / "fleet"
    (folder / "pki").mkdir(parents=True)
    (folder / "pki" / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\n")  # beside hosts.yml after a first run
    inventory = folder / "hosts.yml"
    inventory.write_text("all:\n  children:\n    cloud:\n\thosts: {cloud-1: }\n")
    for source in (inventory, folder):
        played = playbooks.play("preflight", source, tmp_path)
        assert played.code != 0
        assert f"Completely failed to parse inventory source {inventory}" in played.text
        assert "Tabs are usually invalid in YAML" in played.text
    inventory.write_text("all:\n  children: {cloud: , edges: }\n")
    played = playbooks.play("preflight", folder, tmp_path)
    assert played.code != 0
    assert f"{folder}: there is no host in it" in told(played)["localhost"]


def test_what_emo_would_refuse_is_refused_before_any_host_is_touched(tmp_path):
    """Once for the whole fleet, by the controller's own `emo`."""
    values = GOOD | {"emo_config_common": {"model": {"name": "vgg7"}, "wan": {"ruut": "x"}}}
    children = small(emo_config_tier={"overlay": {"lr": "fast"}, "cach": {}})
    said = preflight(tmp_path, values, children)
    (host,) = said
    assert "cloud-1 and 4 more: wan.ruut: unknown key; did you mean 'root'?" in said[host]
    assert "cloud-1 and 3 more: model: name: unknown name 'vgg7'; did you mean 'vgg6'?" in said[host]
    assert "edge-1: overlay.lr: Input should be a valid number" in said[host]
    assert "edge-1: cach: unknown key; did you mean 'cache'?" in said[host]
    assert "Change it in emo_config_common" in said[host]


def test_configurations_that_do_not_fit_each_other_are_refused(tmp_path):
    children = small(emo_address="lan.test") | {
        "cloud": hosts("cloud-1", emo_config_tier={"rounds": {"min_devices": 4}}),
        "hall_b": hosts("pi-03"),
    }
    children["edges"]["hosts"]["edge-2"] = {"emo_edge_devices": "hall_b", "emo_address": "lan.test"}
    children["devices"]["hosts"]["pi-03"] = {"emo_config_host": {"model": {"width": 0.5}}}
    # Those of hosts that --limit leaves out are looked at too: they have to fit.
    (text,) = preflight(tmp_path, GOOD, children, "--limit", "pi-01").values()
    assert "cloud-1: rounds.min_devices is 4, there are 3 devices" in text
    assert "edge-2: its broker is at lan.test:8883, and so is that of edge-1" in text
    assert "pi-03: model.width is 0.5, cloud-1 has 1.0" in text


def test_a_good_inventory_passes(tmp_path):
    assert preflight(tmp_path, GOOD, small()) == {}


def test_the_observer_is_checked_as_every_node_and_may_be_left_out(tmp_path):
    wrong = {"emo_watch_config": {"nods": 3}}
    (text,) = preflight(tmp_path, GOOD | wrong, small()).values()
    assert "watch: nods: unknown key; did you mean 'nodes'?" in text
    children = small() | {"cloud": hosts("cloud-1", emo_watch=False)}
    assert preflight(tmp_path, GOOD | wrong, children, "--limit", "pi-01") == {}
    children = small() | {"cloud": hosts("watch")}
    (text,) = preflight(tmp_path, GOOD, children).values()
    assert "watch: is the name of the observer" in text


def test_every_play_has_a_tag_and_the_preflight_is_never_left_out(tmp_path):
    for name in ("site", "upgrade", "status"):
        plays = yaml.safe_load((ANSIBLE / "playbooks" / f"{name}.yml").read_text())
        tags = [play["tags"] for play in plays if "hosts" in play]
        assert all(len(each) == 1 for each in tags)
        assert len({tag for (tag,) in tags}) == len(tags)
    asked = ("ansible-playbook", "-i", EXAMPLE, "playbooks/site.yml", "--list-tasks", "--tags", "devices")
    tasks = re.findall(r"^      (\S.*?)\tTAGS", run(tmp_path, *asked).stdout, re.MULTILINE)
    assert tasks == ["It has hosts", "The inventory", "Device"]


def test_a_32_bit_pi_is_told_to_be_flashed_anew(tmp_path):
    inventory = tmp_path / "hosts.yml"
    children = {
        "cloud": hosts("cloud-1"),
        "edges": hosts("edge-1", emo_edge_devices="hall_a"),
        "devices": {"children": {"raspberry_pi": hosts("pi-01"), "hall_a": hosts("pi-01")}},
    }
    values = GOOD | {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    values["emo_root"] = str(tmp_path / "node")
    inventory.write_text(yaml.safe_dump({"all": {"vars": values, "children": children}}))
    # The kernel calls itself a 32-bit one for whatever runs below setarch.
    played = playbooks.play("site", inventory, tmp_path, "--limit", "pi-01", prefix=("setarch", "i686"))
    said = told(played)["pi-01"]
    assert said.startswith("pi-01: i386 with 64-bit programs; there are 64-bit images only. Flash the 64-bit Raspberry")
    assert not (tmp_path / "node").exists()
