"""Each rule of aggregation against hostile devices, in an actual small training with the fleet's own nodes."""

import dataclasses
import json

import numpy as np
import pytest
from fleet import MODEL, dataset

from cloud_app.aggregation import clipping
from emo.config import Data
from testbed.experiments import hostile
from testbed.experiments.hostile import ATTACKS, RULES, Setting

pytestmark = pytest.mark.usefixtures("one_thread")

SETTING = Setting(Data(), MODEL, devices=10, hostile=2, rounds=4, lr=0.05)


def accuracy(rule, attack, setting=SETTING):
    settings = RULES[rule] | {"max_norm": 1e9}  # so that nothing is refused: it is the rule that has to hold
    return hostile.accuracy(setting, settings, attack, dataset(320), dataset(200, seed=1))


@pytest.mark.parametrize("attack", ["sign-flip x10", "noise"])
def test_the_mean_gives_in_and_every_other_rule_holds(attack, monkeypatch):
    monkeypatch.setattr(hostile, "_LOUD", 1000)
    found = {rule: accuracy(rule, attack) for rule in RULES}
    assert found.pop("mean") < 0.6
    assert found.pop("mean, max_weight: null") < 0.6
    assert min(found.values()) > 0.9, found
    assert accuracy("mean", "none") > 0.9


def test_one_of_ten_that_claims_millions_of_samples_has_two_shares():
    setting = dataclasses.replace(SETTING, hostile=1, sizes="zipf")
    assert accuracy("mean", "claims", setting) > 0.8
    assert accuracy("mean, max_weight: null", "claims", setting) < 0.3


def test_the_attacks_are_what_they_say():
    rng = np.random.default_rng(0)
    learnt = [{"w": rng.normal(1, 1, (20, 30)), "b": rng.normal(1, 1, 5)} for _ in range(4)]
    for attack, factor in (("sign-flip", -1), ("sign-flip x10", -10), ("label-flip", 1)):
        for sent, each in zip(ATTACKS[attack](rng, learnt), learnt, strict=True):
            assert all((sent[name] == factor * each[name]).all() for name in each)
    for sent, each in zip(ATTACKS["noise"](rng, learnt), learnt, strict=True):
        assert clipping.norm(sent) == pytest.approx(200 * clipping.norm(each))
    little = ATTACKS["little"](rng, learnt)
    assert all((each["w"] == little[0]["w"]).all() for each in little)
    stacked = np.stack([each["w"] for each in learnt])
    np.testing.assert_allclose(little[0]["w"], stacked.mean(0) - 0.157311 * stacked.std(0), atol=1e-6)


def test_an_update_that_is_refused_holds_up_nobody():
    setting = dataclasses.replace(SETTING, rounds=2)
    settings = {"max_norm": 1.0}
    assert hostile.accuracy(setting, settings, "noise", dataset(320), dataset(200, seed=1)) > 0.8


def test_the_same_seed_gives_the_same_bits():
    setting = dataclasses.replace(SETTING, rounds=1)
    assert accuracy("median", "noise", setting) == accuracy("median", "noise", setting)


def test_it_prints_a_table_and_writes_its_rows(tmp_path, capsys):
    said = ["--devices", "10", "--hostile", "2", "--rounds", "1", "--width", "0.5", "--schemes", "iid"]
    options = ["--rules", "mean", "median", "--attacks", "noise", "--json", str(tmp_path / "rows")]
    assert hostile.main([*said, *options]) == 0
    rows = json.loads((tmp_path / "rows").read_text())
    assert [row["rule"] for row in rows] == ["mean", "median"]
    assert all(len(row["accuracy"]["noise"]) == 1 for row in rows)
    assert "| median | " in capsys.readouterr().out


def test_a_data_set_that_is_not_there_is_said(capsys):
    assert hostile.main(["--dataset", "cifar10", "--data-dir", "/nowhere"]) == 2
    assert "hostile: " in capsys.readouterr().err
