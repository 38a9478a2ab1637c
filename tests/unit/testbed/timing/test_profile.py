"""`emo doctor --profile` prints a device class that a scenario file takes."""

import json

import pytest
import torch
import yaml

from emo import cli
from emo.config import Model
from testbed.timing import profile
from testbed.timing.scenario import DeviceClass


@pytest.fixture(autouse=True)
def small(monkeypatch):
    torch.set_num_threads(1)
    measure = profile.measure
    monkeypatch.setattr(profile, "measure", lambda: measure(Model(), seconds=0.0))


def test_it_prints_yaml_to_paste(capsys):
    assert cli.main(["doctor", "--profile"]) == 0
    text = capsys.readouterr().out
    (found,) = yaml.safe_load(text)
    machine = DeviceClass.model_validate(found)
    assert machine.share == 1
    assert f"torch {torch.__version__}" in text


def test_it_prints_json(capsys):
    assert cli.main(["doctor", "--profile", "--json"]) == 0
    assert DeviceClass.model_validate(json.loads(capsys.readouterr().out)).memory_mib > 0
