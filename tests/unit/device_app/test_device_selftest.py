"""`emo selftest` trains a real step and brings a real frame back, and says in a sentence what a machine cannot do."""

import json
import sys

import numpy as np
import pytest
import torch

from device_app import commands, selftest
from emo import cli
from emo.config import DeviceConfig, Model, Tap
from emo.errors import FrameError, ModelError
from emo.models import split_network
from emo.wire import frame


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def interpreter(tmp_path, monkeypatch, script):
    """What `emo selftest` starts is `script`, not Python."""
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))


def test_it_measures_a_step_and_a_batch():
    found = selftest.check(DeviceConfig(id="d", model=Model(name="vgg6", width=0.125, input=(3, 32, 32))))
    assert found["model"] == "vgg6"
    assert found["torch"] == torch.__version__
    assert 0 < found["loss"] < 20
    assert 0 < found["bytes"] < found["raw_bytes"]
    assert found["frames"] == 1


def test_it_tries_the_codec_and_the_chunks_of_the_configuration():
    config = DeviceConfig.model_validate(
        {"id": "d", "tap": {"codec": "fp32", "enabled": False}, "lan": {"chunk_kib": 4}, "edge": None}
    )
    found = selftest.check(config)
    assert found["codec"] == "fp32"
    assert found["frames"] > 1
    assert found["bytes"] > 4096


def test_a_machine_that_damages_frames_is_found_out(monkeypatch):
    real = frame.unpack

    def damaged(kind, payload):
        message = real(kind, payload)
        labels = message.labels.copy()
        labels[0] += 1
        return type(message)(**{**message.__dict__, "labels": labels})

    monkeypatch.setattr(frame, "unpack", damaged)
    with pytest.raises(FrameError, match="does not come back"):
        selftest.check(DeviceConfig(id="d", tap=Tap(codec="fp32")))


@pytest.mark.parametrize(("value", "says"), [(0.0, "changes no weight"), (np.nan, "not finite")])
def test_a_machine_that_does_not_learn_is_found_out(monkeypatch, value, says):
    real = split_network.weights

    def wrong(module):
        return {name: np.full_like(array, value) for name, array in real(module).items()}

    monkeypatch.setattr(split_network, "weights", wrong)
    with pytest.raises(ModelError, match=says):
        selftest.check(DeviceConfig(id="d"))


def test_the_command_starts_it_in_a_process_of_its_own(capsys):
    assert cli.main(["selftest", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert found["model"] == "cnn"


def test_a_configuration_that_is_wrong_is_said(tmp_path, capsys):
    wrong = tmp_path / "device.yaml"
    wrong.write_text("id: d\nmodel: {name: nothing}\n", encoding="utf-8")
    assert cli.main(["selftest", "--config", str(wrong)]) == 1
    assert "nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("kill -ILL $$", "SIGILL"),
        ("kill -KILL $$", "out of memory"),
        ("echo no torch >&2; exit 1", "no torch"),
    ],
)
def test_a_process_that_dies_is_told_in_a_sentence(tmp_path, monkeypatch, script, says):
    interpreter(tmp_path, monkeypatch, script)
    found = commands.run([])
    assert found["ok"] is False
    assert says in found["error"]
    assert ("2.9.1" in found["error"]) == (says == "SIGILL")
