"""Table III: the raw column follows from the models; the measured one is what a method counts."""

import json

import pytest

from emo.config import Data, Model
from testbed.experiments import paper, table3
from testbed.plan import DeviceWork, Plan, RoundTime, RoundWork
from testbed.simulation import run
from testbed.timing import scenario


def rows(tmp_path, *args):
    path = tmp_path / "rows.json"
    assert table3.main([*args, "--json", str(path)]) == 0
    return {(row["dataset"], row["method"]): row for row in json.loads(path.read_text())}


def test_the_raw_column_is_the_papers_to_the_digits_printed(tmp_path, capsys):
    found = rows(tmp_path, "--analytic")
    printed = capsys.readouterr().out
    for method, shown in (("fl-small", "0.004"), ("fl-large", "0.12"), ("sfl-cloud", "2.44")):
        row = found["cifar100", method]
        assert f"| cifar100 | {method} | {shown} |  | {shown} |" in printed
        assert row["paper"] == float(shown)
        assert row["gib_measured"] is None
        digits = len(shown) - 2
        assert round(row["gib_raw"], digits) == float(shown)
    assert len(found) == 8


def test_emos_share_of_sent_batches_follows_from_the_papers_figure(tmp_path):
    found = rows(tmp_path, "--analytic")
    assert found["cifar100", "emo"]["sent_paper"] == pytest.approx(0.275, abs=0.001)
    assert found["cifar100", "emo"]["sent"] == 1
    assert found["cifar10", "emo"]["sent_paper"] > 1  # its figure cannot be activations alone


def test_without_data_or_analytic_it_says_what_is_missing(capsys):
    assert table3.main([]) == 2
    assert "--analytic" in capsys.readouterr().err


class Counted:
    """A method whose two devices have each sent and received so many bytes, and half of EMO's batches."""

    closed = 0

    def __init__(self, plan, *_):
        self.plan = plan

    def round(self, number):
        devices = tuple(DeviceWork(device, 32, 500, {"GlobalModel": 1 << 20}, {"Update": 2 << 20}) for device in (0, 1))
        work = RoundWork(number, devices, 1.0, attempted=64, sent=32)
        return work, RoundTime(1.0, {}, {})

    def close(self):
        Counted.closed += 1


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setattr(run, "make", Counted)
    monkeypatch.setattr(run, "check", lambda *_: None)
    monkeypatch.setattr(paper.registry, "load", lambda _: (None, None))
    Counted.closed = 0


@pytest.mark.usefixtures("counted")
def test_two_devices_count_for_twenty(tmp_path):
    found = rows(tmp_path, "--data-dir", str(tmp_path), "--datasets", "cifar100", "--rounds", "3")
    assert found["cifar100", "fl-small"]["gib_measured"] == pytest.approx(20 * 3 / 1024)
    emo = found["cifar100", "emo"]
    assert emo["sent"] == 0.5
    assert emo["gib_raw"] == pytest.approx(0.5 * 1.2207 + 0.0039, abs=2e-4)
    assert Counted.closed == 4


@pytest.mark.usefixtures("counted")
def test_measured_rounds_are_those_of_the_scale():
    wanted = paper.plan("cifar10", "emo")
    assert (wanted.devices, wanted.per_round, wanted.samples, wanted.rounds) == (100, 20, 500, 200)
    assert len(paper.measure(wanted, scenario.load(None), "small", 1, None)) == 10
    assert len(paper.measure(wanted, scenario.load(None), "paper", 1, 4)) == 4
    assert len(paper.measure(paper.plan("cifar10", "fl-large"), scenario.load(None), "paper", 1, 4)) == 1


def test_a_data_set_that_is_not_there_is_said(tmp_path, capsys):
    assert table3.main(["--data-dir", str(tmp_path), "--datasets", "cifar10"]) == 2
    assert "cifar" in capsys.readouterr().err


def test_work_is_spread_over_more_devices():
    plan = Plan(method="emo", data=Data(), model=Model(), devices=4, per_round=4)
    one = RoundWork(1, (DeviceWork(0, 2, 32, {}, {"Update": 5}), DeviceWork(1, 1, 16, {}, {"Update": 7})), 0.5, 6, 3)
    like = RoundWork(2, tuple(DeviceWork(device, 9, 9) for device in (3, 5, 8, 9)), 0.0, steps=(4, 4))
    found = paper.spread(plan, one, like)
    assert [(each.device, each.up["Update"]) for each in found.devices] == [(3, 5), (5, 7), (8, 5), (9, 7)]
    assert (found.attempted, found.sent, found.steps) == (12, 6, (4, 4))
