"""`emo doctor` finds what would stop a run, says what to do, and imports no torch itself."""

import contextlib
import errno
import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from emo import cli, config_file
from emo.config import Broker
from emo.errors import BrokerError
from emo.mqtt.probe import Probe
from emo.ops import doctor
from emo.ops.example_configs import init
from emo.runtime import heartbeat


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine on which all is well: torch trains a step at once, every broker answers."""
    monkeypatch.setattr(doctor, "_STEP", "print('2.13.0 on the CPU')")
    monkeypatch.setattr(doctor, "_READY", 'print(\'{"ok": true, "detail": "it would start"}\')')
    monkeypatch.setattr(doctor, "probe", lambda _broker: Probe("5", 0.001))
    for name in [name for name in os.environ if name.startswith("EMO_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def files(tmp_path):
    return {path.stem: path for path in init(tmp_path / "fleet")}


def find(what, path=None):
    return [check for check in doctor.checks(path) if check.what.startswith(what)]


def one(what, path=None):
    (check,) = find(what, path)
    return check


def change(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize("name", ["cloud", "edge-1", "device-01"])
def test_all_is_well(name, files, capsys):
    assert doctor.run(files[name], as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok ") for line in lines)
    assert f": {name.partition('-')[0]} {name}" in "\n".join(lines)


def test_without_a_configuration_it_looks_at_the_machine(capsys):
    assert doctor.run(None, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"]
    assert {check["what"] for check in told["checks"]} == {"python", "clock", "packages", "torch"}


def test_a_failure_is_the_exit_code_and_says_what_to_do(files, capsys, monkeypatch):
    def refuse(broker):
        raise BrokerError(f"nothing answers at {broker.host}:{broker.port}")

    monkeypatch.setattr(doctor, "probe", refuse)
    assert doctor.run(files["cloud"], as_json=False) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert "nothing answers at 127.0.0.1:1883" in line
    assert "-> start it" in line
    assert doctor.run(files["cloud"], as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


# -- torch


@pytest.mark.parametrize("name", ["SIGILL", "SIGKILL"])
def test_a_torch_that_dies_is_reported_not_shared(name, files, monkeypatch):
    monkeypatch.setattr(doctor, "_STEP", f"import os, signal; os.kill(os.getpid(), signal.{name})")
    check = one("torch", files["device-01"])
    assert check.level == "FAIL"
    assert name in check.detail
    assert ("torch==" in check.advice) == (name == "SIGILL")


def test_a_torch_that_does_not_import_says_its_last_word(monkeypatch):
    monkeypatch.setattr(doctor, "_STEP", "raise ImportError('libcudart.so.12: cannot open shared object file')")
    check = one("torch")
    assert (check.level, "libcudart.so.12" in check.detail) == (
        "warn",
        True,
    )  # no configuration: maybe not needed


def test_a_torch_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(doctor, "_STEP", "import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "_TORCH_S", 0.2)
    assert "did not end" in one("torch").detail


def test_doctor_imports_no_torch_itself():
    code = (
        "import sys, emo.ops.doctor; sys.exit(not {'torch', 'sklearn', 'onnxruntime', 'h5py'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- packages, clock


def test_missing_packages_matter_to_their_tier_only(files, monkeypatch):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "h5py" else real(name))
    assert one("packages", files["device-01"]).level == "ok"
    edge = one("packages", files["edge-1"])
    assert edge.level == "FAIL"
    assert "h5py" in edge.detail
    assert "emo-overlays[edge]" in edge.advice
    assert [check.level for check in find("packages")] == ["ok", "warn", "ok", "ok"]


def test_an_old_paho_is_refused(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: "2.1.0" if name == "paho-mqtt" else "1.0")
    assert one("paho").level == "FAIL"


@pytest.mark.parametrize(("now", "level"), [(0, "FAIL"), (1.8e9, "ok"), (2**33, "FAIL")])
def test_a_clock_at_1970_is_refused(now, level):
    assert doctor._clock(now).level == level


# -- the configuration


def test_the_tier_is_known_by_its_keys_even_when_one_is_wrong(files):
    change(files["edge-1"], "policy: svcca", "polcy: svcca")
    check = one("config", files["edge-1"])
    assert check.level == "FAIL"
    assert "controller.polcy: unknown key; did you mean 'policy'?" in check.detail


@pytest.mark.parametrize("content", [None, "- a\n- b\n", "a: [", b"\xff\xfe\x00"])
def test_what_is_no_configuration(content, tmp_path):
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    check = find("config", path)[0]
    assert check.level == "FAIL"
    assert "c.yaml" in check.detail


def test_data_that_is_not_there(files, tmp_path):
    change(files["device-01"], "name: digits", "name: cifar10")
    assert one("data", files["device-01"]).advice.startswith("set it to the folder")
    change(files["device-01"], "#dir: null", f"dir: {tmp_path / 'nowhere'}")
    assert "nowhere is not a folder" in one("data", files["device-01"]).detail
    (tmp_path / "nowhere").mkdir()
    assert one("data", files["device-01"]).level == "ok"
    change(files["device-01"], "name: cifar10", "name: cifar1")
    assert "data: name: unknown name 'cifar1'; did you mean 'cifar10'?" in one("config", files["device-01"]).detail
    change(files["device-01"], "name: cifar1", "name: nobody_has.this:load")
    assert "no module 'nobody_has'" in one("data", files["device-01"]).detail


def test_disk_space(files, monkeypatch):
    for free, level in ((1 << 20, "FAIL"), (500 << 20, "warn"), (5 << 30, "ok")):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _path, free=free: SimpleNamespace(free=free))
        assert one("cache.dir", files["edge-1"]).level == level
        assert one("export.models", files["cloud"]).level == level
        assert one("state_dir", files["device-01"]).level == level


def test_a_folder_below_a_file_cannot_be_written(files, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    change(files["cloud"], "models: ", f"models: {tmp_path / 'file' / 'models'} #")
    check = one("export.models", files["cloud"])
    assert (check.level, "cannot be written" in check.detail) == ("FAIL", True)


# -- brokers


def test_which_brokers_are_asked(files, monkeypatch):
    asked = []

    def answer(broker):
        asked.append(broker.port)
        return Probe("5", 0.001)

    monkeypatch.setattr(doctor, "probe", answer)
    device = files["device-01"]
    assert [check.what for check in find("broker", device)] == ["broker wan, lan"]
    wan, _port, lan = device.read_text(encoding="utf-8").rpartition("port: 1883")
    device.write_text(f"{wan}port: 1884{lan}", encoding="utf-8")
    assert [check.what for check in find("broker", device)] == ["broker wan", "broker lan"]
    change(device, "enabled: true", "enabled: false")
    assert [check.what for check in find("broker", device)] == ["broker wan"]
    assert [check.what for check in find("broker", files["cloud"])] == ["broker wan"]
    assert asked == [1883, 1883, 1884, 1883, 1883]


@pytest.mark.parametrize(
    ("found", "levels"),
    [
        (Probe("5", 0.001, max_packet=2_000_000), ["ok", "ok"]),
        (Probe("5", 0.001, max_packet=131_072), ["ok", "warn"]),
        (Probe("5", 0.001, max_packet=262_144), ["ok", "warn"]),  # the chunk fits, its packet does not
        (Probe("5", 0.001, max_packet=1000), ["ok", "FAIL"]),
        (Probe("5", 0.001, retain=False), ["ok", "FAIL"]),
        (Probe("5", 0.001, max_qos=0), ["ok", "FAIL"]),
        (Probe("3.1.1", 0.001), ["warn"]),
        (Probe("5", 0.001, retained_by_wildcard=False), ["ok", "warn"]),
        (Probe("5", 0.001, retain=False, retained_by_wildcard=False), ["ok", "FAIL"]),
        (Probe("5", 0.001, window=1), ["ok", "warn"]),
        (Probe("5", 0.001, window=20), ["ok", "ok"]),
    ],
)
def test_what_a_broker_takes(found, levels, monkeypatch):
    monkeypatch.setattr(doctor, "probe", lambda _broker: found)
    assert [check.level for check in doctor._broker("wan", Broker())] == levels


# -- an observer


@pytest.fixture
def watch(files, monkeypatch):
    """All is well, but that its endpoint is not there yet."""

    def refuse(*_args, **_options):
        raise ConnectionRefusedError("Connection refused")

    monkeypatch.setattr(doctor, "_STEP", "raise SystemExit('an observer needs no torch')")
    monkeypatch.setattr("socket.create_server", lambda *_args, **_options: io.BytesIO())
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    return files["watch"]


@pytest.fixture
def taken(monkeypatch):
    """The page's port is."""

    def refuse(*_args, **_options):
        raise OSError(errno.EADDRINUSE, "Address already in use")

    monkeypatch.setattr("socket.create_server", refuse)


def test_an_observer_needs_no_torch_and_its_endpoint_may_come_later(watch, capsys):
    assert doctor.run(watch, as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith("ok ")] == [
        line for line in lines if line.startswith("warn  endpoint") and "it needs a first model" in line
    ]
    text = "\n".join(lines)
    for said in (": observer watch", "observer: paho-mqtt", "127.0.0.1:", " is free", "state_dir", "broker wan"):
        assert said in text
    assert "torch" not in text


def test_a_page_whose_port_is_taken(watch, taken):
    check = one("page", watch)
    assert (check.level, check.advice) == ("FAIL", "correct host, or name another port")
    assert check.detail == "127.0.0.1:8080 cannot be listened at: Address already in use"


def test_an_observer_that_runs_is_not_asked_for_its_port(watch, taken):
    state = config_file.any_tier(watch, {}).state_dir
    heart = heartbeat.HeartbeatWriter(state, "observer", "watch", lambda: {"wan": True})
    state.mkdir(parents=True)
    heart.beat()
    assert one("page", watch).detail.endswith("this observer runs, and has it")
    assert cli.main(["health", "--config", str(watch), "--connected"]) == 0


def test_who_is_let_in_to_the_page(watch, tmp_path):
    change(watch, "host: 127.0.0.1  ", "host: 0.0.0.0  ")
    assert "everybody who reaches it sees the fleet" in find("page", watch)[-1].detail
    keys = tmp_path / "keys"
    change(watch, "#api_key_file: null", f"api_key_file: {keys}")
    assert [(check.what, check.level) for check in find("page", watch)] == [("page", "ok"), ("page keys", "FAIL")]
    for text, wrong in (("# none\n", "holds no key"), ("short\n", "a key of less than 16 characters")):
        keys.write_text(text)
        assert wrong in one("page keys", watch).detail
    keys.write_text("0123456789abcdef\n")
    keys.chmod(0o644)
    assert one("page keys", watch).advice == f"chmod 600 {keys}"
    keys.chmod(0o600)
    assert find("page", watch)[-1].detail.endswith("its keys can be read on the way")
    change(watch, "#tls_cert: null", f"tls_cert: {keys}")
    change(watch, "#tls_key: null", f"tls_key: {keys}")
    assert "no certificate and its unencrypted key" in one("page tls", watch).detail


def test_the_fleet_that_an_observer_shows(watch, tmp_path):
    fleet = tmp_path / "fleet.yaml"
    change(watch, "#fleet: null", f"fleet: {fleet}")
    for text, level, said in (
        (None, "FAIL", "cannot be read"),
        ("edges: {edge-1: [device-01]}\n", "FAIL", "no node 'watch' in this fleet"),
        ("edges: {watch: [device-01]}\n", "FAIL", "watch is a node of tier edge"),
        ("edges: {edge-1: [device-01]}\nobservers: [watch]\n", "ok", "watch may watch it"),
    ):
        if text:
            fleet.write_text(text)
        check = one("fleet", watch)
        assert (check.level, said in check.detail) == (level, True), check


def test_an_endpoint_that_answers(watch, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_args, **_options: contextlib.nullcontext())
    assert one("endpoint", watch).detail == "http://127.0.0.1:8000 answers"


def test_an_edges_own_broker_need_not_retain(monkeypatch):
    monkeypatch.setattr(doctor, "probe", lambda _broker: Probe("5", 0.001, retain=False))
    for names, levels in {"lan": ["ok"], "wan, lan": ["ok", "FAIL"]}.items():
        assert [check.level for check in doctor._broker(names, Broker())] == levels
