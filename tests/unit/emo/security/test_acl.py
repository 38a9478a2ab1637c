"""The access rules that come from the table of topics: what each tier needs, and nothing else."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emo.cli import main
from emo.config import ID
from emo.errors import ConfigError
from emo.security import acl, mosquitto
from emo.security.members import Members
from emo.wire.topics import ROUTES

MEMBERS = Members(edges={"edge-1": ("device-01", "device-02"), "edge-2": ("device-03",)}, observers=("watch",))

# By hand, from docs/protocol.md.
WAN = {
    "cloud": {
        ("write", "emo/wan/status/cloud/+"),
        ("read", "emo/wan/status/+/+"),
        ("write", "emo/wan/global/+"),
        ("write", "emo/wan/head/+"),
        ("write", "emo/wan/state/+"),
        ("read", "emo/wan/update/+"),
        ("write", "emo/wan/refused/+"),
        ("read", "emo/wan/overlay/+"),
        ("read", "emo/wan/cannot-train/+"),
        ("write", "emo/wan/unfit/+"),
        ("write", "emo/wan/report/cloud/+"),
        ("write", "emo/wan/event/cloud"),
        ("write", "emo/wan/history/+"),
    },
    "watch": {
        ("write", "emo/wan/status/watch/0"),
        ("read", "emo/wan/status/+/+"),
        ("read", "emo/wan/state/+"),
        ("read", "emo/wan/report/+/+"),
        ("read", "emo/wan/event/+"),
        ("read", "emo/wan/history/+"),
    },
    "edge-2": {
        ("write", "emo/wan/status/edge-2/0"),
        ("write", "emo/wan/report/edge-2/0"),
        ("write", "emo/wan/event/edge-2"),
        ("write", "emo/wan/cannot-train/edge-2"),
        ("read", "emo/wan/unfit/edge-2"),
        ("read", "emo/wan/state/+"),
        ("read", "emo/wan/head/+"),
        ("write", "emo/wan/overlay/edge-2"),
    },
    "device-03": {
        ("write", "emo/wan/status/device-03/0"),
        ("write", "emo/wan/report/device-03/0"),
        ("write", "emo/wan/event/device-03"),
        ("read", "emo/wan/global/+"),
        ("write", "emo/wan/update/device-03"),
        ("read", "emo/wan/refused/device-03"),
        ("write", "emo/wan/cannot-train/device-03"),
        ("read", "emo/wan/unfit/device-03"),
    },
}
LAN = {
    "edge-1": {
        ("read", "emo/lan/edge-1/activation/+"),
        ("read", "emo/lan/edge-1/report/+"),
        ("write", "emo/lan/edge-1/interval/+"),
    },
    "device-02": {
        ("write", "emo/lan/edge-1/activation/device-02"),
        ("write", "emo/lan/edge-1/report/device-02"),
        ("read", "emo/lan/edge-1/interval/device-02"),
    },
}


def test_the_wan():
    found = acl.grants(MEMBERS, "emo")
    assert list(found) == ["cloud", "edge-1", "edge-2", "device-01", "device-02", "device-03", "watch"]
    assert {name: set(found[name]) for name in WAN} == WAN


def test_a_lan():
    found = acl.grants(MEMBERS, "emo", "edge-1")
    assert list(found) == ["edge-1", "device-01", "device-02"]
    assert {name: set(found[name]) for name in LAN} == LAN


def test_as_mosquitto_reads_it():
    text = acl.text(MEMBERS, "fleet-a", "edge-2")
    users = re.split(r"^user ", text, flags=re.MULTILINE)[1:]
    assert [user.split("\n")[0] for user in users] == ["edge-2", "device-03"]
    assert "topic write fleet-a/lan/edge-2/activation/device-03\n" in text
    assert all(re.fullmatch(r"(#.*|user \S+|topic (read|write) fleet-a/\S+|)", line) for line in text.split("\n"))


def test_an_edge_that_is_none():
    with pytest.raises(ConfigError, match="did you mean 'edge-2'"):
        acl.text(MEMBERS, "emo", "edge-22")


ids = st.from_regex(ID, fullmatch=True)


@given(st.lists(ids, min_size=3, max_size=8, unique=True), st.data())
def test_no_two_write_to_one_topic_and_activations_have_one_reader(names, data):
    cut = data.draw(st.integers(1, len(names) - 2))
    edges = {names[1]: tuple(names[2 : cut + 2]), "the-other": tuple(names[cut + 2 :])}
    members = Members(cloud=names[0], edges=edges)
    writers: dict[str, list[str]] = {}
    for grants in (acl.grants(members, "emo"), *(acl.grants(members, "emo", edge) for edge in edges)):
        for name, rules in grants.items():
            for access, topic in rules:
                if access == "write":
                    writers.setdefault(topic, []).append(name)
                elif "/activation/" in topic:
                    assert name in edges
                    assert topic.split("/")[2] == name
    assert all(len(found) == 1 for found in writers.values())
    for topic, (name,) in writers.items():
        if name in members.devices:
            assert name in topic.split("/")
            assert "+" not in topic


def test_every_route_has_somebody_at_both_ends():
    assert all(route.writers and route.readers for route in ROUTES.values())


# -- emo broker


@pytest.fixture
def fleet(tmp_path):
    path = tmp_path / "fleet.yaml"
    path.write_text("edges: {edge-1: [device-01]}", encoding="utf-8")
    return path


def write(fleet, *words):
    return main(["broker", *words, "--fleet", str(fleet), "--out", str(fleet.parent / "out")])


def test_a_second_time_changes_nothing(fleet, capsys):
    assert write(fleet, "wan", "--json") == 0
    files = {path: path.stat().st_mtime_ns for path in (fleet.parent / "out").iterdir()}
    assert {path.name for path in files} == {"acl", "mosquitto.conf"}
    assert '"changed": true' in capsys.readouterr().out
    assert write(fleet, "wan", "--json") == 0
    assert {path: path.stat().st_mtime_ns for path in (fleet.parent / "out").iterdir()} == files
    assert '"changed": false, "files": []' in capsys.readouterr().out


def test_paths_are_those_that_mosquitto_sees(fleet):
    assert write(fleet, "lan", "--edge", "edge-1", "--at", "/mosquitto/config", "--port", "9999") == 0
    text = (fleet.parent / "out" / "mosquitto.conf").read_text(encoding="utf-8")
    assert "\nlistener 9999 \n" in text
    assert "\nacl_file /mosquitto/config/acl\n" in text
    assert "\ncafile /mosquitto/config/tls/ca.crt\n" in text
    assert str(fleet.parent) not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lan"], "lan needs --edge"),
        (["wan", "--edge", "edge-1"], "--edge goes with lan"),
        (["lan", "--edge", "edge-9"], "did you mean 'edge-1'"),
        (["wan", "--root", "a/#"], "--root"),
        (["wan", "--port", "0"], "--port"),
        (["wan", "--tls", "/a b\nallow_anonymous true"], "--tls"),
        (["wan", "--user", "root\nallow_anonymous true"], "--user"),
        (["wan", "--queue-mib", "1000", "--memory-mib", "2000"], "never recovers"),
    ],
)
def test_bad_input_writes_nothing(fleet, words, said, capsys):
    assert write(fleet, *words) == 2
    assert said in capsys.readouterr().err
    assert not (fleet.parent / "out").exists()


def test_the_limits_grow_with_the_fleet(tmp_path):
    settings = mosquitto.Settings(port=8883, here=tmp_path, tls=tmp_path)
    large = Members(edges={"edge-1": tuple(f"d{n}" for n in range(1000))})
    limits = [
        int(re.search(r"max_connections (\d+)", mosquitto.text(members, None, settings))[1])
        for members in (MEMBERS, large)
    ]
    assert limits[0] > 6
    assert limits[1] > 1002 * 2
