"""`emo check` finds what a fleet's configurations hold that cannot work, and says where."""

import io
import json
import sys

import pytest
import yaml

from emo import cli
from emo.ops.example_configs import init


@pytest.fixture
def fleet(tmp_path, capsys):
    """name -> path; `emo init`'s examples."""
    files = {path.stem: path for path in init(tmp_path / "fleet")}
    capsys.readouterr()
    return files


@pytest.fixture
def check(capsys):
    def run(*words, code=None):
        found = cli.main(["check", *map(str, words)])
        out = capsys.readouterr()
        assert "Traceback" not in out.err
        assert code is None or found == code, out
        return out.out.splitlines()

    return run


def change(path, **keys):
    """Set `section__key`, or take it out (None)."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key, value in keys.items():
        *outer, last = key.split("__")
        at = values
        for name in outer:
            at = at.setdefault(name, {})
        at[last] = value
        if value is None:
            del at[last]
    path.write_text(yaml.safe_dump(values), encoding="utf-8")


def test_the_examples_fit(fleet, check):
    assert check(*fleet.values(), code=0) == ["ok: 1 cloud, 4 devices, 2 edges, 1 observer, and they fit each other"]
    told = json.loads(check(*fleet.values(), "--json", code=0)[0])
    assert told == {"ok": True, "nodes": 8, "wrong": []}


@pytest.mark.parametrize(
    ("node", "keys", "says"),
    [
        ("cloud", {"training__lr": "fast"}, "training.lr: Input should be a valid number"),
        ("cloud", {"rounds__minimum": 3}, "rounds.minimum: unknown key"),
        ("cloud", {"model__name": "vgg7"}, "model: name: unknown name 'vgg7'; did you mean 'vgg6'?"),
        ("device-01", {"data__name": "cifar"}, "data: name: unknown name 'cifar'; did you mean 'cifar10'?"),
        ("cloud", {"rounds__min_devices": 5}, "rounds.min_devices is 5, there are 4 devices: no round"),
        ("cloud", {"overlays__edges": ["edge-1", "egde-2"]}, "overlays.edges names 'egde-2', which is no edge here; did you mean"),
        ("cloud", {"overlays__edges": ["edge-1"]}, "overlays.edges does not name 'edge-2'"),
        ("cloud", {"overlays__wait_s": 300}, "overlay.finish_s is 540"),
        ("cloud", {"overlays__fit": "weights"}, "overlays.fit is weights, which needs data.heldout"),
        ("cloud", {"data__heldout": 0.1}, "data.heldout is 0.0"),
        ("cloud", {"model__width": 0.5}, "model.width is 1.0"),
        ("cloud", {"wan__root": "other"}, "wan.root is emo"),
        ("device-01", {"wan__port": 2883}, "wan.port at 127.0.0.1 is 2883"),
        ("device-01", {"lan__port": 2883}, "lan.port is 2883, "),
        ("edge-1", {"devices": ["device-01", "device-20"]}, "devices names 'device-20', which is no device here; did you mean"),
        ("edge-1", {"devices": ["device-01", "device-02", "device-03"]}, "devices names 'device-03', whose edge is 'edge-2'"),
        ("edge-1", {"devices": []}, "devices is empty"),
        ("edge-1", {"lan__root": "there"}, "lan.root is emo"),
        ("device-01", {"edge": "edge-3"}, "edge is 'edge-3', which is no edge here; did you mean 'edge-"),
        ("device-03", {"edge": "edge-1"}, "edge is 'edge-1', whose devices"),
        ("device-02", {"id": "device-01"}, "2 nodes are called 'device-01'"),
        ("device-02", {"partition__index": 0}, "partition.index 0 is"),
        ("device-02", {"partition__alpha": 1.0}, "alpha differ"),
        ("device-02", {"model__classes": 3}, "model.classes is 3"),
        ("edge-1", {"id": "edge/1"}, "id: String should match pattern"),
        ("watch", {"id": "edge-1"}, "2 nodes are called 'edge-1'"),
        ("watch", {"wan__root": "other"}, "wan.root is other, "),
        ("watch", {"wan__port": 2883}, "wan.port at 127.0.0.1 is 2883"),
        ("watch", {"nods": 3}, "nods: unknown key; did you mean 'nodes'?"),
        ("watch", {"tls_key": "key.pem"}, "tls_cert and tls_key go together"),
        ("watch", {"fleet": "nowhere.yaml"}, "fleet: nowhere.yaml: cannot be read"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_with_its_place(node, keys, says, fleet, check):
    change(fleet[node], **keys)
    lines = check(*fleet.values(), code=1)
    assert any(says in line for line in lines), lines
    assert all(".yaml" in line for line in lines)
    assert json.loads(check(*fleet.values(), "--json", code=1)[0])["wrong"] == lines


def test_a_fleet_has_as_many_observers_as_it_likes(fleet, check, tmp_path):
    text = fleet["watch"].read_text(encoding="utf-8")
    second = fleet["watch"].with_name("watch-2.yaml")
    second.write_text(text.replace("id: watch", "id: watch-2", 1), encoding="utf-8")
    assert "2 observers" in check(*fleet.values(), second, code=0)[0]
    members = tmp_path / "fleet.yaml"
    members.write_text("edges: {edge-1: [watch-2]}\nobservers: [watch]\n")
    for path in (fleet["watch"], second):
        change(path, fleet=str(members))
    (line,) = check(*fleet.values(), second, code=1)
    assert "watch-2.yaml: id: 'watch-2' is a node of tier device in" in line


def test_the_fleet_of_a_configuration_from_elsewhere_is_not_looked_for(fleet, check, monkeypatch):
    change(fleet["watch"], fleet="/etc/emo/fleet.yaml")
    stdin = io.TextIOWrapper(io.BytesIO(fleet["watch"].read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert check("-", code=0) == ["ok: 1 observer, and they fit each other"]


def test_encryption_at_one_broker_is_for_all_or_for_none(fleet, check):
    tls = {"ca": "ca.crt", "cert": "node.crt", "key": "node.key"}
    for name, path in fleet.items():
        change(path, wan__host="broker.test", wan__tls=None if name == "device-04" else tls)
    (line,) = check(*fleet.values(), code=1)
    assert "device-04.yaml: tls of broker.test:1883 is not set" in line


def test_brokers_of_their_own(fleet, check):
    for name, host in (("cloud", "c"), ("edge-1", "a"), ("edge-2", "a")):
        change(fleet[name], wan__host="c", **({} if name == "cloud" else {"lan__host": host}))
    assert check(*fleet.values(), code=0)  # one broker may serve many
    (line,) = check("--own-brokers", *fleet.values(), code=1)
    assert "edge-2.yaml: its broker is at a:1883, and so is that of" in line
    change(fleet["edge-2"], lan__port=1884)
    assert check("--own-brokers", *fleet.values(), code=0)


def test_of_a_tier_that_is_not_there_nothing_is_said(fleet, check):
    assert check(fleet["device-01"], code=0) == ["ok: 1 device, and they fit each other"]
    assert check(fleet["cloud"], fleet["edge-1"], fleet["edge-2"], code=0)


def test_what_cannot_be_read_is_said_and_nothing_that_follows_from_it(fleet, check, tmp_path):
    fleet["device-01"].write_text("id: x\n\tedge: y\n")
    (line,) = check(*fleet.values(), code=1)
    assert "device-01.yaml: is not YAML" in line
    lines = check(tmp_path / "nowhere.yaml", *fleet.values(), code=1)
    assert "nowhere.yaml: cannot be read" in lines[0]
    assert len(lines) == 2


def test_variables_of_this_process_are_not_of_the_fleet(fleet, check, monkeypatch):
    monkeypatch.setenv("EMO_ID", "me")
    monkeypatch.setenv("EMO_NO_SUCH", "1")
    check(*fleet.values(), code=0)


def test_standard_input_holds_them_all(fleet, check, monkeypatch):
    def given(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    texts = [path.read_text(encoding="utf-8") for path in fleet.values()]
    given("".join(f"---\n{text}\n" for text in texts).encode())
    assert check("-", code=0) == ["ok: 1 cloud, 4 devices, 2 edges, 1 observer, and they fit each other"]
    wide = [text.replace("#width: 1.0", "width: wide") for text in texts]
    given("---\n".join([*wide, "- a list\n", "a: [\n", texts[0]]).encode())
    lines = check("-", code=1)
    assert lines[0].startswith("cloud and 6 more: model.width: Input should be a valid number")
    assert lines[1:3] == [
        "standard input, part 9: expected `key: value` lines, found a list",
        next(line for line in lines if "part 10: is not YAML" in line),
    ]
    given(b"\xff")
    check("-", code=2)


def test_the_names_that_a_configuration_takes_are_those_that_there_are():
    from emo import config
    from emo.data import registry
    from emo.models import split_network

    assert set(config.NETWORKS) == set(split_network.BUILT_IN)
    assert set(config.DATASETS) == set(registry.BUILT_IN)
    for name in (":", "a:", ":b", "", "cnn:"):
        with pytest.raises(ValueError, match="unknown name"):
            config.CloudConfig(model=config.Model(name=name))
    assert config.CloudConfig(data=config.Data(name="mine.data:load")).data.name == "mine.data:load"
