"""`emo health` and `emo rounds`: who is alive, whatever the clock says, and what a cloud does while it is held."""

import json
import subprocess
import sys
import threading
import time

import pytest
import yaml

from emo import cli
from emo.runtime import heartbeat
from emo.runtime.heartbeat import HeartbeatWriter, beating

UP = {"wan": True, "lan": True}


pytestmark = pytest.mark.usefixtures("signals")


def configured(folder, tier="device", name="device-1", **more):
    needs = {"device": {"data": {"name": "digits"}}, "edge": {"devices": ["a"]}, "cloud": {"rounds": {}}}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"id": name, "state_dir": str(folder / name), **needs[tier], **more}))
    (folder / name).mkdir(exist_ok=True)
    return path


def asked(capsys, *args):
    code = cli.main([*map(str, args), "--json"])
    return code, json.loads(capsys.readouterr().out)


def beat(folder, brokers=UP, about=dict, tier="device", **changes):
    """The file as a living process has it, with `changes`."""
    HeartbeatWriter(folder, tier, folder.name, lambda: brokers, about).beat()
    path = folder / heartbeat.NAME
    if changes:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_heart_beats_while_its_block_runs_and_says_goodbye(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "_EVERY_S", 0.01)
    (tmp_path / ".9.tmp").write_text("half, by a process that was killed")
    heart = HeartbeatWriter(tmp_path, "edge", "edge-1", lambda: UP, lambda: {"round": 3})
    with beating([heart]):
        first = None
        while first is None or heartbeat.read(tmp_path).monotonic == first.monotonic:
            first = first or heartbeat.read(tmp_path)
        found = heartbeat.read(tmp_path)
        assert (found.tier, found.id, found.brokers, found.about) == ("edge", "edge-1", UP, {"round": 3})
        assert found.wrong(30) == ""
    assert heartbeat.read(tmp_path).wrong(30) == "stopped in good order"
    assert [path.name for path in tmp_path.iterdir()] == [heartbeat.NAME]


@pytest.mark.parametrize("tier", ["device", "edge", "cloud"])
def test_a_living_node_is_well(tmp_path, capsys, tier):
    path = configured(tmp_path, tier)
    beat(tmp_path / "device-1", tier=tier)
    code, found = asked(capsys, "health", "--config", path)
    assert (code, found["ok"]) == (0, True)
    assert found["nodes"][0]["tier"] == tier


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"stopped": True}, "stopped in good order"),
        ({"monotonic": -40.0}, "no sign of life"),
        ({"boot": "another"}, "no sign of life"),
        ({"turned_s": 31.0}, "its main loop has not turned for 31 s"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, capsys, changes, why):
    path = configured(tmp_path)
    if "monotonic" in changes:
        changes = {"monotonic": time.monotonic() - 40}
    beat(tmp_path / "device-1", **changes)
    code, found = asked(capsys, "health", "--config", path)
    assert code == 1
    assert why in found["nodes"][0]["why"]


def test_slow_is_not_dead_and_the_date_is_not_asked(tmp_path, capsys):
    path = configured(tmp_path, "cloud")
    beat(tmp_path / "device-1", turned_s=500.0, doing="exporting", time=1.0)
    assert asked(capsys, "health", "--config", path)[0] == 0


def test_a_broker_that_is_away_counts_where_it_is_asked_for(tmp_path, capsys):
    path = configured(tmp_path)
    beat(tmp_path / "device-1", {"wan": True, "lan": False})
    assert asked(capsys, "health", "--config", path)[0] == 0
    code, found = asked(capsys, "health", "--config", path, "--connected")
    assert code == 1
    assert found["nodes"][0]["why"] == "not connected to its broker: lan"


def test_of_several_nodes_one_that_was_never_started_is_enough(tmp_path, capsys):
    paths = [configured(tmp_path, name=name) for name in ("device-1", "device-2")]
    beat(tmp_path / "device-1")
    code, found = asked(capsys, "health", "--config", *paths)
    assert code == 1
    assert [node["ok"] for node in found["nodes"]] == [True, False]
    assert "never started" in found["nodes"][1]["why"]


@pytest.mark.parametrize("text", ["", "{}", "junk", '{"time": 1}', "x" * 100_000])
def test_a_file_that_is_no_heartbeat_is_said_in_words(tmp_path, capsys, text):
    path = configured(tmp_path)
    (tmp_path / "device-1" / heartbeat.NAME).write_text(text)
    assert cli.main(["health", "--config", str(path)]) == 2
    assert str(tmp_path / "device-1" / heartbeat.NAME) in capsys.readouterr().err


def test_health_needs_no_torch(tmp_path):
    path = configured(tmp_path)
    beat(tmp_path / "device-1")
    text = f"import sys; from emo import cli; code = cli.main(['health', '--config', {str(path)!r}]); "
    done = subprocess.run([sys.executable, "-c", text + "sys.exit(code or 'torch' in sys.modules)"], check=False)
    assert done.returncode == 0


# -- rounds


def about(phase="waiting", **more):
    idle = {"idle": False, "paused": False}
    counts = {"devices": 4, "sampled": 0, "updates": 0}
    return lambda: {"run": "r-1", "round": 3, "of": 9, "phase": phase, **counts, **idle, **more}


@pytest.fixture
def cloud(tmp_path):
    return configured(tmp_path, "cloud", "cloud"), tmp_path / "cloud"


def test_pause_and_resume_are_a_file(cloud, capsys):
    path, folder = cloud
    beat(folder, about=about("collecting", sampled=4, updates=1))
    for _ in range(2):
        code, found = asked(capsys, "rounds", "pause", "--config", path)
        assert (code, found["paused"], found["idle"], found["running"]) == (0, True, False, True)
        assert (found["round"], found["of"], found["sampled"], found["updates"]) == (3, 9, 4, 1)
    assert (folder / heartbeat.PAUSE).exists()
    for _ in range(2):
        assert asked(capsys, "rounds", "resume", "--config", path)[1]["paused"] is False
    assert not (folder / heartbeat.PAUSE).exists()


def test_wait_lasts_until_no_round_is_under_way(cloud, capsys):
    path, folder = cloud
    beat(folder, about=about("collecting"))
    assert asked(capsys, "rounds", "pause", "--config", path, "--wait", "--timeout", "0.3")[0] == 1
    threading.Timer(0.4, lambda: beat(folder, about=about(idle=True, paused=True))).start()
    code, found = asked(capsys, "rounds", "pause", "--config", path, "--wait")
    assert (code, found["idle"]) == (0, True)


def test_a_cloud_that_does_not_run_has_no_round_under_way(cloud, capsys):
    path, folder = cloud
    assert asked(capsys, "rounds", "pause", "--config", path, "--wait")[1]["run"] is None
    beat(folder, about=about("collecting"), stopped=True)
    code, found = asked(capsys, "rounds", "pause", "--config", path, "--wait")
    assert (code, found["idle"], found["running"], found["round"]) == (0, True, False, 3)
    assert cli.main(["rounds", "status", "--config", str(path)]) == 1
    assert "paused, the cloud is not running; it was in round 3 of 9" in capsys.readouterr().out


def test_status_is_0_of_a_cloud_that_runs_only(cloud, capsys):
    path, folder = cloud
    code, found = asked(capsys, "rounds", "status", "--config", path)
    assert (code, found["running"]) == (1, False)
    beat(folder, about=about("collecting", sampled=4, updates=1))
    code, found = asked(capsys, "rounds", "status", "--config", path)
    assert (code, found["running"]) == (0, True)
