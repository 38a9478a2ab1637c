"""Figure 5: seconds by method, for both readings of the WAN, with the parts that make them."""

import json

import pytest

from testbed.experiments import figure5, paper
from testbed.timing import estimate


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figure5")
    args = ["--datasets", "cifar100", "--json", str(folder / "rows.json"), "--plot", str(folder / "plot.svg")]
    assert figure5.main(args) == 0
    assert (folder / "plot.svg").read_text().startswith("<?xml")
    return json.loads((folder / "rows.json").read_text())


def test_a_row_for_each_method_and_reading(found):
    assert len(found) == 12
    assert {row["method"] for row in found} >= {"fl-small", "fl-large", "sfl-cloud", "sfl-edge", "emo"}


def test_parts_and_groups_add_up_to_the_seconds(found):
    for row in found:
        assert sum(row["parts"].values()) == pytest.approx(row["seconds"])
        assert sum(row["groups"].values()) == pytest.approx(row["seconds"])


def test_emo_takes_fl_smalls_time_and_the_others_more(found):
    for wan in ("shared", "each its own"):
        times = {row["method"]: row["times_emo"] for row in found if row["wan"] == wan}
        assert times["emo"] == 1
        assert times["fl-small"] == pytest.approx(1, abs=0.05)
        assert times["sfl-cloud"] > times["sfl-edge"] > times["fl-large"] > 2


def test_a_fleet_of_one_class(tmp_path, capsys, found):
    path = tmp_path / "rows.json"
    only = ["--datasets", "cifar100", "--only", "Jetson Xavier NX", "--json", str(path)]
    assert figure5.main(only) == 0
    assert "100% of the devices: Jetson Xavier NX" in capsys.readouterr().out
    fast = {(row["method"], row["wan"]): row["groups"]["devices compute"] for row in json.loads(path.read_text())}
    for row in found:
        assert fast[row["method"], row["wan"]] < row["groups"]["devices compute"]


def test_an_unknown_class_or_scenario_is_said(tmp_path, capsys):
    assert figure5.main(["--only", "Jetson"]) == 2
    assert "no device class 'Jetson'" in capsys.readouterr().err
    assert figure5.main(["--scenario", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_measured_work_of_two_devices_is_timed_as_twenty(tmp_path, monkeypatch, found):
    """With the bytes of the models alone as if measured on two devices, the seconds are the same."""

    def measured(plan, *_):
        return [estimate.work(plan.model_copy(update={"devices": 2, "per_round": 2}), 500, compressed=True)]

    monkeypatch.setattr(paper, "measure", measured)
    path = tmp_path / "rows.json"
    assert figure5.main(["--datasets", "cifar100", "--data-dir", str(tmp_path), "--json", str(path)]) == 0
    for row, bare in zip(json.loads(path.read_text()), found, strict=True):
        assert row["seconds"] == pytest.approx(bare["seconds"], rel=1e-6), row["method"]
