"""`emo edge intervals`: the table of an edge, for people and for programs."""

import json

import pytest

from edge_app.intervals.controller import Row
from edge_app.intervals.log_file import IntervalLog
from emo.cli import main
from emo.journal import Journal

CONTROLLER = "{max_interval: 10, max_age: 8}"


pytestmark = pytest.mark.usefixtures("signals")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "edge.yaml"
    lines = ["id: edge-1", "devices: [dev-1, dev-2, dev-3]", f"controller: {CONTROLLER}"]
    path.write_text("\n".join([*lines, f"cache: {{dir: {tmp_path}/cache}}"]), encoding="utf-8")
    return str(path)


@pytest.fixture
def saved(tmp_path):
    (tmp_path / "cache").mkdir()
    with IntervalLog(tmp_path / "cache", Journal()) as file:
        file.begin("run-1")
        for row in (Row("dev-2", 0, 4, 0.5, 2.0), Row("dev-1", 3, 9, float("nan"), 8.0)):
            file.save(row)
        yield file


@pytest.mark.usefixtures("saved")
def test_a_table_for_people(config, capsys):
    assert main(["edge", "intervals", "--config", config]) == 0
    head, one, two, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["device", "batch", "version", "score", "interval", "age"]
    assert one.split()[:5] == ["dev-1", "3", "9", "-", "8.0"]
    assert two.split()[:5] == ["dev-2", "0", "4", "0.5000", "2.0"]
    assert last == "2 batches of run run-1; mean interval 5.0 attempts; 50% at the cap of 8"


@pytest.mark.usefixtures("saved")
def test_json_of_one_device(config, capsys):
    assert main(["edge", "intervals", "--config", config, "--device", "dev-1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found.pop("rows")
    assert found == {"edge": "edge-1", "run": "run-1", "mean_interval": 8.0, "share_at_cap": 1.0, "cap": 8}
    assert row.pop("time") > 1e9
    wanted = {"device": "dev-1", "batch": 3, "version": 9, "score": None, "interval": 8.0, "counter": 0}
    assert row == wanted


@pytest.mark.usefixtures("saved")
def test_a_device_without_a_batch_yet_and_one_that_is_not_the_edges(config, capsys):
    assert main(["edge", "intervals", "--config", config, "--device", "dev-3"]) == 0
    assert "0 batches of run run-1" in capsys.readouterr().out
    assert main(["edge", "intervals", "--config", config, "--device", "dve-1"]) == 2
    assert "no device 'dve-1' in devices; did you mean 'dev-1'?" in capsys.readouterr().err


def test_without_a_table_it_says_what_to_do(config, capsys):
    assert main(["edge", "intervals", "--config", config]) == 2
    assert "no table of intervals yet" in capsys.readouterr().err


def test_the_edge_itself_still_wants_a_configuration(capsys, tmp_path):
    assert main(["edge"]) == 2
    assert "--config FILE" in capsys.readouterr().err
    assert main(["edge", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: cannot be read" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["edge", "intervals"])
    assert "required: --config" in capsys.readouterr().err
