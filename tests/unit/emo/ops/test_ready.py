"""`emo doctor` reads and builds what a tier does at its start: where it is green, the tier does not stop at once."""

import threading

import pytest
import torch

from cloud_app import ready as cloud_ready
from cloud_app import run as cloud
from cloud_app.rounds import checkpoint
from cloud_app.rounds.state import begin
from device_app import ready as device_ready
from device_app import run as device
from edge_app import ready as edge_ready
from edge_app import run as edge
from emo.config import CloudConfig, DeviceConfig, EdgeConfig
from emo.config_file import load
from emo.errors import EmoError
from emo.journal import Journal
from emo.models import split_network
from emo.models.layers import Parts
from emo.mqtt.probe import Probe
from emo.ops import doctor
from emo.ops.example_configs import init

TIERS = {
    "cloud": (CloudConfig, cloud_ready.described, cloud.run),
    "edge-1": (EdgeConfig, edge_ready.described, edge.run),
    "device-01": (DeviceConfig, device_ready.described, lambda config, stop: device.run([config], stop)),
}


@pytest.fixture
def files(tmp_path, capsys):
    return {path.stem: path for path in init(tmp_path / "fleet")}


def no_overlay(spec):
    made = split_network.parts(spec.model_copy(update={"name": "cnn"}))
    return Parts(made.trunk, made.head, lambda: torch.nn.Linear(3, spec.classes))


def write(path, **lines):
    """`classes: 10` and the like, anew."""
    text = path.read_text(encoding="utf-8")
    for key, value in lines.items():
        (old,) = [line for line in text.splitlines() if line.lstrip().startswith(f"{key}:")][:1]
        text = text.replace(old, f"{old.partition(':')[0]}: {value}", 1)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("node", TIERS)
def test_what_fits_is_said(node, files):
    kind, said, _ = TIERS[node]
    text = said(load(kind, files[node]))
    assert "cnn" in text
    assert {"cloud": "10 classes", "edge-1": "parameters", "device-01": "samples"}[node] in text


@pytest.mark.parametrize(
    ("node", "lines", "says"),
    [
        ("cloud", {"classes": 11}, "set model.input to [1, 8, 8] and model.classes to 10"),
        ("cloud", {"input": "[3, 8, 8]"}, "set model.input to [1, 8, 8]"),
        ("device-01", {"classes": 2}, "model.classes to 10"),
        ("device-01", {"input": "[1, 28, 28]"}, "set model.input to"),
        ("edge-1", {"input": "[64]"}, "takes images"),
        ("edge-1", {"name": f"{__name__}:no_overlay"}, "its overlay does not take samples"),
        ("cloud", {"name": f"{__name__}:no_overlay"}, "its overlay does not take samples"),
    ],
)
def test_what_stops_the_tier_is_what_doctor_says(node, lines, says, files):
    write(files[node], **lines)
    kind, said, run = TIERS[node]
    config = load(kind, files[node])
    with pytest.raises(EmoError) as told:
        said(config)
    assert says in str(told.value)
    with pytest.raises(EmoError) as stopped:
        run(config, threading.Event())
    assert str(stopped.value) == str(told.value)


def test_a_run_that_was_begun_with_other_settings_stops_the_cloud_and_nothing_is_moved(files):
    config = load(CloudConfig, files["cloud"])
    net = split_network.network(config.model, 0)
    folder = config.state_dir / "run"
    assert checkpoint.Checkpoints(folder, Journal()).save(begin(config, "r-1", split_network.weights(net)))
    (folder / "00000002.safetensors").write_bytes(b"damaged")
    there = sorted(folder.iterdir())
    assert "10 classes" in cloud_ready.described(config)
    write(files["cloud"], lr="0.5")
    with pytest.raises(EmoError, match=r"training\.lr is 0\.5, was 0\.05.*--new-run"):
        cloud_ready.described(load(CloudConfig, files["cloud"]))
    assert sorted(folder.iterdir()) == there


def start_of(path):
    return [check for check in doctor.checks(path) if check.what == "start"]


def test_doctor_has_it_done_in_a_process_of_its_own(files, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_STEP", "print('2.13.0 on the CPU')")
    monkeypatch.setattr(doctor, "probe", lambda _broker: Probe("5", 0.001))
    write(files["device-01"], classes=11)
    assert doctor.run(files["device-01"], as_json=False) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert line.startswith("FAIL  start")
    assert "model.classes to 10" in line
    assert "would not start" in line


@pytest.mark.parametrize(
    ("code", "level", "says"),
    [
        ('print(\'loading\\n{"ok": true, "detail": "fine"}\')', "ok", "fine"),
        ("print('{\"ok\": true}')", "FAIL", "ends with status 0"),
        ("import sys; sys.exit('TypeError: no')", "FAIL", "TypeError: no"),
        ("print('[1]')", "FAIL", "ends with status 0"),
        ("import os; os.abort()", "FAIL", "SIGABRT"),
        ("import time; time.sleep(60)", "FAIL", "does not end"),
    ],
)
def test_what_that_process_may_do_is_not_believed(code, level, says, files, monkeypatch):
    monkeypatch.setattr(doctor, "_STEP", "print('2.13.0 on the CPU')")
    monkeypatch.setattr(doctor, "_READY", code)
    monkeypatch.setattr(doctor, "_READY_S", 0.3 if "sleep" in code else 60)
    monkeypatch.setattr(doctor, "probe", lambda _broker: Probe("5", 0.001))
    (check,) = start_of(files["cloud"])
    assert (check.level, says in check.detail) == (level, True), check


def test_without_torch_it_is_not_tried(files, monkeypatch):
    monkeypatch.setattr(doctor, "_STEP", "raise ImportError('no torch')")
    monkeypatch.setattr(doctor, "probe", lambda _broker: Probe("5", 0.001))
    assert start_of(files["cloud"]) == []
