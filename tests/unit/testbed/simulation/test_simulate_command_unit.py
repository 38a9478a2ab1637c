"""`emo simulate` and `emo compare` as they are typed."""

import json
import re

import pytest
from simulated import Drawn

from emo import cli
from testbed import units
from testbed.simulation import run, run_folder

SMALL = ["--dataset", "digits", "--width", "0.5", "--devices", "10", "--per-round", "4", "--rounds", "4"]


@pytest.fixture(autouse=True)
def drawn(monkeypatch, tmp_path):
    made = []

    def make(plan, _scenario, _training, _test, workers, _device, folder):
        made.append((plan, workers))
        return Drawn(plan, folder)

    monkeypatch.setattr(run, "make", make)
    monkeypatch.chdir(tmp_path)
    return made


def emo(*words, code=0):
    assert cli.main([part for word in words for part in str(word).split()]) == code


def test_options_become_a_plan_and_what_is_not_given_keeps_its_default(tmp_path, drawn, monkeypatch):
    monkeypatch.setenv("EMO_OVERLAY__LR", "0.02")
    options = "--norm batch --alpha 0.5 --lr 0.1 --epochs 2 --edges 0.25 0.75 --seed 4 --workers 3"
    tap = "--codec fp16 --policy fixed(2) --fresh-rounds 1 --replay-ratio 2"
    emo("simulate", "--method", "emo", *SMALL, options, tap, "--out", "run")
    ((plan, workers),) = drawn
    assert workers == 3
    assert plan.model.model_dump() == {
        "name": "cnn",
        "width": 0.5,
        "norm": "batch",
        "input": (1, 8, 8),
        "classes": 10,
    }
    assert (plan.alpha, plan.training.lr, plan.training.epochs) == (0.5, 0.1, 2)
    assert (plan.edges, plan.seed, plan.data.seed) == ((0.25, 0.75), 4, 4)
    assert (plan.tap.codec, plan.controller.policy, plan.fresh_rounds) == ("fp16", "fixed(2)", 1)
    assert (plan.overlay.replay_ratio, plan.overlay.lr, plan.overlay.momentum) == (2, 0.02, 0.9)
    assert (plan.batch_size, plan.evaluate_every) == (16, 5)


def test_json_is_a_line_a_round_and_one_for_the_result(capsys):
    emo("simulate", "--method", "fl-small", *SMALL, "--json")
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["round"] for line in lines[:-1]] == [1, 2, 3, 4]
    assert lines[-1]["out"] == "runs/fl-small-digits-0"
    assert lines[-1]["accuracies"] == lines[3]["accuracies"] != {}
    assert "assumed: " in err
    assert "round 4/4" in err


def test_a_run_goes_on_by_its_folder_alone(capsys, drawn, tmp_path):
    emo("simulate", "--method", "fl-small", *SMALL, "--seed", "3", "--out", "run")
    text = capsys.readouterr().out
    assert "accuracy   model" in text
    emo("simulate", "--resume", "--out", "run")
    assert capsys.readouterr().out == text
    emo("simulate", "--resume", "--out", "run", "--rounds", "9", code=2)
    assert "rounds is 4 there, not 9" in capsys.readouterr().err
    emo("simulate", "--resume", "--out", "nowhere", code=2)
    assert "holds no run" in capsys.readouterr().err
    assert len(drawn) == 1


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "which run?"),
        (["--out", "x"], "which method?"),
        (["--method", "fedprox"], "method: Input should be 'fl-small', 'fl-large'"),
        (["--method", "emo", "--alpha", "-1"], "alpha: Input should be greater than 0 (found -1.0)"),
        (["--method", "emo", "--policy", "often"], "controller.policy: must be svcca"),
        (["--method", "emo", "--dataset", "some.where:data"], "which model for some.where:data?"),
        (["--method", "emo", "--scenario", "none.yaml"], "none.yaml: cannot be read"),
        (["--method", "emo", "--per-round", "200"], "per_round"),
        (["--method", "emo", "--workers", "0"], "workers 0: must be 1 or more"),
        (["--method", "emo", "--checkpoint", "0"], "checkpoint 0: must be 1 or more"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(words, text, capsys, drawn):
    emo("simulate", *words, code=2)
    err = capsys.readouterr().err
    assert text in err
    assert "Traceback" not in err
    assert drawn == []


def test_a_comparison_is_a_table_and_plots(capsys, tmp_path):
    for method, seed in (("fl-small", 0), ("fl-small", 1), ("emo", 0), ("sfl-cloud", 0)):
        out = f"{method}-{seed}"
        emo("simulate", "--method", method, *SMALL, "--seed", seed, "--evaluate-every", 2, "--out", out)
    capsys.readouterr()
    emo("compare", "fl-small-0", "fl-small-1", "emo-0", "sfl-cloud-0", "--out", "plots", "--json")
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() == {"fl-small", "emo", "sfl-cloud"}
    small, two = rows["fl-small"], [run_folder.Run(tmp_path / f"fl-small-{seed}") for seed in (0, 1)]
    accuracies = [each.result.accuracies["model"] for each in two]
    assert small["seeds"] == 2
    assert small["accuracy"] == pytest.approx(sum(accuracies) / 2)
    assert small["spread"] == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2**0.5)
    assert small["wan_gib"] == pytest.approx(two[0].total.wan / 4 / 2**30)
    assert (small["virtual_s"], small["sent_fraction"]) == (2.5, None)
    assert rows["emo"]["sent_fraction"] == 0.75
    assert rows["emo"]["spread"] is None
    for name in ("accuracy.svg", "round.svg"):
        assert (tmp_path / "plots" / name).stat().st_size > 5000
    text = (tmp_path / "plots" / "compare.md").read_text()
    assert "| emo | digits | cnn x 0.5 | 4 | 1 |" in text
    assert "Mbit/s" in text  # what the seconds rest on
    emo("compare", "fl-small-0", "--out", "plots", "--format", "png")
    assert (tmp_path / "plots" / "accuracy.png").read_bytes()[:4] == b"\x89PNG"


def test_small_figures_are_not_rounded_to_nothing(capsys):
    """A round of the digits is some KiB and some ms: in GiB and whole hundredths of a second all runs were alike."""
    emo("simulate", "--method", "fl-small", *SMALL, "--out", "small")
    assert re.search(r"LAN 0 B, WAN [\d.]+ KiB", capsys.readouterr().out)
    emo("compare", "small", "--json")
    (row,) = json.loads(capsys.readouterr().out)
    assert 0 < row["wan_gib"] < 5e-5  # what a table shows of it has four digits
    emo("compare", "small")
    names, _, cells = capsys.readouterr().out.splitlines()
    cell = dict(zip(names.split(" | "), cells.split(" | "), strict=True))
    assert (cell["LAN a round"], cell["virtual time a round"]) == ("0 B", "2.50 s")
    assert cell["WAN a round"] == units.size(row["wan_gib"] * 2**30)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1, "1 B"), (0.25, "0.25 B"), (1023, "1,023 B"), (1536, "1.50 KiB"), (640.8 * 2**10, "641 KiB"),
     (10.1 * 2**20, "10.1 MiB"), (1023.99 * 2**20, "1,024 MiB"), (5000 * 2**30, "5,000 GiB")],
)  # fmt: skip
def test_bytes_for_people(count, text):
    assert units.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (3e-6, "0.003 ms"), (0.00123, "1.23 ms"), (0.0125, "12.5 ms"), (2.5, "2.50 s"), (61.25, "61.2 s"), (4321, "4,321 s")],
)  # fmt: skip
def test_seconds_for_people(seconds, text):
    assert units.seconds(seconds) == text


def test_two_plans_of_one_method_are_told_apart_by_their_folders(capsys):
    for lr in ("0.1", "0.2"):
        emo("simulate", "--method", "fl-small", *SMALL, "--lr", lr, "--out", f"lr-{lr}")
    capsys.readouterr()
    emo("compare", "lr-0.1", "lr-0.2")
    out = capsys.readouterr().out
    assert "| fl-small (lr-0.1) |" in out
    assert "| fl-small (lr-0.2) |" in out
    emo("compare", "lr-0.1", "lr-0.3", code=2)
    assert "lr-0.3: holds no run" in capsys.readouterr().err
