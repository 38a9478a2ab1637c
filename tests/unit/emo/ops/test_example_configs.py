"""The examples that `emo init` writes are valid, complete, agree with each other, and replace nothing."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from emo import config, config_file
from emo.errors import ConfigError
from emo.ops.example_configs import commands, init

KINDS = {
    "cloud": config.CloudConfig,
    "edge": config.EdgeConfig,
    "device": config.DeviceConfig,
    "watch": config.WatchConfig,
}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'a "strange": #folder, é'


@pytest.fixture
def files(folder):
    return init(folder)


def kind_of(path):
    return KINDS[path.stem.partition("-")[0]]


def read(path):
    return config_file.load(kind_of(path), path, environ={})


def uncommented(path):
    """The same file with every `#key: value` line taken in."""
    return yaml.safe_load(re.sub(r"(?m)^(\s*)#(\w+:)", r"\1\2", path.read_text(encoding="utf-8")))


def keys(kind, values):
    """Every key of a configuration, with those of its sections, but for one that `values` leaves out by null."""
    found = {}
    for name, info in kind.model_fields.items():
        options = [info.annotation, *getattr(info.annotation, "__args__", ())]
        section = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        inner = values.get(name, {})
        found[name] = keys(section[0], inner) if section and inner is not None else None
    return found


def written(values):
    return {name: written(v) if isinstance(v, dict) else None for name, v in values.items()}


def test_it_writes_one_file_a_node(folder, files):
    nodes = ["cloud", "edge-1", "edge-2", *(f"device-0{n}" for n in (1, 2, 3, 4)), "watch"]
    assert {path.name for path in files} == {f"{node}.yaml" for node in nodes}
    assert {path.name for path in folder.iterdir()} == {path.name for path in files}
    assert sorted(read(path).id for path in files) == sorted(nodes)


def test_every_key_is_there_and_what_is_commented_out_is_the_default(files):
    for path in files:
        everything = uncommented(path)
        assert written(everything) == keys(kind_of(path), everything), path.name
        assert config_file.parse(kind_of(path), everything, path.name, environ={}) == read(path), path.name


def test_every_key_is_explained_where_it_first_appears(files):
    for path in files:
        seen = set()
        for line in path.read_text(encoding="utf-8").splitlines():
            key = re.match(r"\s*#?(\w+): *[^ #]", line)  # not a section
            if key and key[1] not in seen:
                assert re.search(r"  # \w", line), f"{path.name}: {line}"
                seen.add(key[1])
        assert len(seen) > 15


def test_the_nodes_fit_each_other(folder, files):
    nodes = {path.stem: read(path) for path in files}
    cloud = nodes["cloud"]
    edges = {name: node for name, node in nodes.items() if name.startswith("edge")}
    devices = {name: node for name, node in nodes.items() if name.startswith("device")}
    assert set(cloud.overlays.edges) == set(edges)
    assert cloud.rounds.min_devices == len(devices)
    watch = nodes["watch"]
    assert {node.model for node in nodes.values() if node is not watch} == {cloud.model}
    assert {node.wan for node in nodes.values()} == {cloud.wan}
    assert {device.data for device in devices.values()} == {cloud.data}
    for name, device in devices.items():
        assert name in edges[device.edge].devices
        assert device.lan == edges[device.edge].lan
        assert device.partition.devices == len(devices)
    assert sorted(device.partition.index for device in devices.values()) == list(range(len(devices)))
    assert len({device.partition.scheme for device in devices.values()}) == 1
    assert len({node.state_dir for node in nodes.values()}) == len(nodes)
    places = [
        *(node.state_dir for node in nodes.values()),
        *(e.cache.dir for e in edges.values()),
        cloud.export.models,
    ]
    assert all(place.is_absolute() and place.is_relative_to(folder) for place in places)


def test_the_commands_name_the_files(folder, files, capsys):
    text = commands(folder)
    words = shlex.split(text, comments=True)
    assert {str(path) for path in files} <= set(words)
    init(folder / "again")
    assert f"emo cloud --config {shlex.quote(str(folder / 'again' / 'cloud.yaml'))}" in capsys.readouterr().out


def test_a_relative_folder_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read(init(Path("here"))[0]).state_dir == tmp_path / "here" / "state" / "cloud"


def test_nothing_is_overwritten(folder, files):
    (folder / "edge-2.yaml").write_text("mine", encoding="utf-8")
    for path in files:
        if path.name != "edge-2.yaml":
            path.unlink()
    with pytest.raises(ConfigError, match=r"edge-2\.yaml: there already"):
        init(folder)
    assert [path.name for path in folder.iterdir()] == ["edge-2.yaml"]
    assert (folder / "edge-2.yaml").read_text(encoding="utf-8") == "mine"


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be written"):
        init(tmp_path / "file")
