"""The compose files follow the specification's schema and this project's rules, and name what EMO takes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from emo import config, config_file
from emo.errors import ConfigError

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
FILES = sorted(DOCKER.glob("compose*.yaml"))
OVERRIDES = ("compose.gpu.yaml", "compose.edge.gpu.yaml")
TIERS = {
    "coordinator": config.CloudConfig,
    "edge": config.EdgeConfig,
    "device": config.DeviceConfig,
    "watch": config.WatchConfig,
}
CONFIGS = {"coordinator": "cloud", "edge": "edge", "device": "device", "watch": "watch"}


def read(name):
    return yaml.safe_load((DOCKER / name).read_text(encoding="utf-8"))


SERVICES = [
    pytest.param(name, service, id=f"{path.name}-{name}")
    for path in FILES
    if path.name not in OVERRIDES
    for name, service in read(path.name)["services"].items()
]


def kind(name):
    """Of a service: device-01 -> device."""
    return re.sub(r"-\d+$", "", name)


def mounts(service):
    """(source, target, may it write there) of each volume."""
    for volume in service["volumes"]:
        if isinstance(volume, dict):
            yield volume["source"], volume["target"], not volume.get("read_only")
        else:
            source, target, *options = volume.split(":")
            yield source, target, options != ["ro"]


def seconds(text):
    return int(re.fullmatch(r"(\d+)s", text)[1])


def mib(text):
    number, unit = re.fullmatch(r"(?:\$\{\w+:-)?(\d+)([mg])\}?", text).groups()
    return int(number) * {"m": 1, "g": 1024}[unit]


def test_they_follow_the_specification():
    tool = Path(sys.executable).with_name("check-jsonschema")
    done = subprocess.run(
        [tool, "--builtin-schema", "vendor.compose-spec", *FILES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("name", "service"), SERVICES)
def test_a_service_may_do_nothing_that_it_does_not_need(name, service):
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == ("1883:1883" if name == "broker" else "10001:10001")
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc"} & set(service)
    assert name == "broker" or any(mount.startswith("/tmp:") for mount in service["tmpfs"])
    for _, target, written in mounts(service):
        assert not written or target.startswith("/var/lib/emo"), target


def test_one_service_builds_a_tag_and_the_others_do_not_ask_a_registry_for_it():
    """Two that build one tag are built side by side by a current Docker: "already exists"."""
    for files in (["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]):
        services = {}
        for file in files:
            for name, service in read(file)["services"].items():
                services[name] = services.get(name, {}) | service
        ours = {name: each for name, each in services.items() if each["image"].startswith("emo-")}
        assert len(ours) == 9
        built = [each["image"] for each in ours.values() if "build" in each]
        assert len(built) == len(set(built))
        for name, each in ours.items():
            assert each["image"] in built, name
            assert ("build" in each) == (each.get("pull_policy") != "never"), name


def test_no_folder_of_a_fleets_host_is_left_for_the_engine_to_make():
    """It would be root's: of the cloud's models that came to light when the run was over, and could not be exported."""
    text = (ROOT / "docs/images.md").read_text(encoding="utf-8")
    prepared = " ".join(re.findall(r"^    sudo install -d (.*)$", text, re.MULTILINE)).split()
    seen = 0
    for name in ("compose.cloud.yaml", "compose.cloud.watch.yaml", "compose.edge.yaml", "compose.device.yaml"):
        for service in read(name)["services"].values():
            for volume in service["volumes"]:
                assert volume["type"] == "bind"
                assert volume["bind"] == {"create_host_path": False}, volume["source"]
                assert re.sub(r"\$\{\w+:-(.*?)\}", r"\1", volume["source"]) in prepared, "by hand, says docs/images.md"
                seen += 1
    assert seen == 13


def test_the_folders_prepared_by_hand_are_those_that_a_container_needs(tmp_path):
    """The lines of docs/images.md, run below another root: what is written is its user's."""
    text = (ROOT / "docs/images.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    sudo (install -d .*)$", text, re.MULTILINE)
    for line in lines:
        words = [word if not word.startswith("/") else f"{tmp_path}{word}" for word in line.split()]
        if os.geteuid():
            words = [word for word in words if word not in ("-o", "-g") and not word.isdigit()]
        subprocess.run(words, check=True)
    owner = 10001 if os.geteuid() == 0 else os.geteuid()
    for folder in ("etc/emo", "var/lib/emo", "var/lib/emo/models"):
        assert (tmp_path / folder).stat().st_uid == owner, folder


@pytest.mark.parametrize(("name", "service"), SERVICES)
def test_a_service_has_its_limits_and_comes_back(name, service):
    assert service["restart"] == ("on-failure" if name == "coordinator" else "unless-stopped")
    assert mib(service["mem_limit"]) >= 512
    assert service["pids_limit"] <= 1024
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    stored = kind(name) in TIERS  # what it has is written before it ends
    assert seconds(service["stop_grace_period"]) >= (60 if stored else 10)
    assert name != "endpoint" or seconds(service["stop_grace_period"]) > 10, "it drains for ten seconds"
    assert name == "broker" or service["init"] is True
    assert name != "broker" or service["healthcheck"]["test"][0] == "CMD"  # ours is in the image
    if name == "watch":  # whose image's own asks the endpoint
        assert service["command"] == ["watch", "--config", "/etc/emo/watch.yaml"]
        assert service["healthcheck"]["test"] == ["CMD", "emo", "health", "--config", "/etc/emo/watch.yaml"]


@pytest.mark.parametrize(("name", "service"), SERVICES)
def test_an_image_is_named_by_its_version_or_has_to_be_given(name, service):
    image = service["image"]
    assert re.fullmatch(r"\$\{[A-Z]+_IMAGE:\?.*@sha256.*\}|(\$\{BROKER_IMAGE:-)?[\w./-]+:[\w.-]+\}?", image)
    assert "latest" not in image


def test_a_broker_refuses_before_it_is_killed():
    from emo.cli import _parser

    asked = _parser().parse_args(["broker", "wan", "--fleet", "x", "--out", "x"])
    for name in ("compose.edge.yaml", "compose.cloud.yaml"):
        assert mib(read(name)["services"]["broker"]["mem_limit"]) > asked.memory_mib


def test_every_variable_is_documented_and_none_looks_like_a_key_of_the_configuration():
    text = (ROOT / "docs/images.md").read_text(encoding="utf-8")
    for path in FILES:
        for name in re.findall(r"\$\{(\w+)", path.read_text(encoding="utf-8")):
            assert not name.startswith("EMO_"), "those are the configuration's, and refused where it has no such key"
            assert f"`{name}`" in text, name


def environments():
    for name, service in read("compose.yaml")["services"].items():
        if kind(name) in TIERS:
            yield name, kind(name), service.get("environment", {})


def loaded():
    return {
        name: config_file.load(TIERS[tier], DOCKER / "dev" / f"{CONFIGS[tier]}.yaml", environ)
        for name, tier, environ in environments()
    }


def test_every_variable_of_a_container_is_a_key_of_its_configuration():
    assert any(environ for _, _, environ in environments())
    loaded()  # an unknown key raises
    with pytest.raises(ConfigError, match="unknown key"):
        config_file.load(config.EdgeConfig, DOCKER / "dev/edge.yaml", {"EMO_ID": "e", "EMO_DEVICE": "[d]"})
    for path in FILES:
        for name, service in read(path.name)["services"].items():
            given = {key for key in service.get("environment", {}) if key.startswith("EMO_")}
            assert not given or path.name == "compose.yaml", name


def test_the_nodes_of_the_development_fleet_fit_each_other():
    nodes = loaded()
    cloud, watch = nodes.pop("coordinator"), nodes.pop("watch")
    assert watch.wan == cloud.wan
    edges = {node.id: node for name, node in nodes.items() if name.startswith("edge")}
    devices = {node.id: node for name, node in nodes.items() if name.startswith("device")}
    assert set(nodes) == set(edges) | set(devices)
    assert set(cloud.overlays.edges) == set(edges)
    assert cloud.rounds.min_devices == len(devices) == 4
    assert len({node.model for node in (cloud, *nodes.values())}) == 1
    assert {device.data for device in devices.values()} == {cloud.data}
    assert all(name in edges[device.edge].devices for name, device in devices.items())
    assert sorted(name for edge in edges.values() for name in edge.devices) == sorted(devices)
    assert sorted(device.partition.index for device in devices.values()) == [0, 1, 2, 3]
    hosts = {link.host for node in (cloud, *nodes.values()) for link in (node.wan, getattr(node, "lan", node.wan))}
    assert hosts == {"broker"}


def test_the_page_is_published_to_this_machine_only_and_reads_nothing_of_the_coordinators():
    for file in ("compose.yaml", "compose.cloud.watch.yaml"):
        watch = read(file)["services"]["watch"]
        (port,) = watch["ports"]
        assert re.sub(r"\$\{\w+:-(.*?)\}", r"\1", port) == "127.0.0.1:8080:8080"
        (written,) = [target for _, target, may in mounts(watch) if may]
        assert written == "/var/lib/emo/watch"
    coordinator = {source for source, _, _ in mounts(read("compose.cloud.yaml")["services"]["coordinator"])}
    assert not coordinator & {source for source, _, _ in mounts(watch)}


def test_what_the_nodes_write_lies_where_they_may_write():
    for node in loaded().values():
        places = [node.state_dir]
        places += [node.cache.dir] if isinstance(node, config.EdgeConfig) else []
        places += [node.export.models] if isinstance(node, config.CloudConfig) else []
        assert all(str(place).startswith("/var/lib/emo/") for place in places)


def test_the_overrides_change_services_that_there_are():
    for override, base in zip(OVERRIDES, ("compose.yaml", "compose.edge.yaml"), strict=True):
        names = read(override)["services"]
        assert set(names) <= set(read(base)["services"])
        for service in names.values():
            (device,) = service["deploy"]["resources"]["reservations"]["devices"]
            assert device["capabilities"] == ["gpu"]
