"""The recipes of table II and figure 4: which plans they run, what they make of them, that runs are kept."""

import json

import numpy as np
import pytest
from simulated import Drawn

from emo.data.dataset import Dataset
from testbed.experiments import figure4, recipe, table2
from testbed.simulation import run


@pytest.fixture(autouse=True)
def made(monkeypatch):
    """The plans of the methods that were made. The data are one grey image, 50,000 times."""
    plans = []
    grey, one = np.full((1, 3, 32, 32), 128, np.uint8), np.ones(3, np.float32)
    labels = np.random.default_rng(0).integers(0, 10, 50_000)

    def load(_spec):
        big, small = (np.broadcast_to(grey, (count, 3, 32, 32)) for count in (50_000, 100))
        names = tuple("abcdefghij")
        return Dataset(big, labels, names, one, one), Dataset(small, labels[:100], names, one, one)

    def make(plan, _scenario, _training, _test, _workers, _device, folder):
        plans.append(plan)
        return Drawn(plan, folder)

    monkeypatch.setattr("emo.data.registry.load", load)
    monkeypatch.setattr(run, "make", make)
    return plans


def test_table2_is_a_row_a_method_with_the_papers_figure_beside_it(tmp_path, made, capsys):
    out = tmp_path / "rows.json"
    words = ["--data-dir", str(tmp_path), "--rounds", "1", "--seeds", "0", "1", "--json", str(out)]
    assert table2.main(words) == 0
    rows = json.loads(out.read_text())
    assert [(row["dataset"], row["method"], row["paper"]) for row in rows] == [
        ("cifar10", "fl-small", 76.57),
        ("cifar10", "fl-large", 76.22),
        ("cifar10", "sfl-cloud", 77.13),
        ("cifar10", "emo", 79.51),
    ]
    assert all(row["seeds"] == [0, 1] and len(row["accuracies"]) == 2 for row in rows)
    assert rows[0]["accuracy"] == pytest.approx(sum(rows[0]["accuracies"]) / 2)
    assert rows[0]["spread"] == pytest.approx(np.std(rows[0]["accuracies"], ddof=1))
    assert "| cifar10 | emo |" in capsys.readouterr().out
    assert {plan.model.name for plan in made} == {"vgg6"}
    assert {(plan.devices, plan.per_round, plan.samples, plan.model.width) for plan in made} == {
        (100, recipe.PER_ROUND, 500, recipe.WIDTH)
    }


def test_at_the_papers_scale_the_plan_is_the_papers(tmp_path):
    parser = recipe.parser("", ["emo"])
    args = parser.parse_args(["--data-dir", str(tmp_path), "--scale", "paper"])
    plan = recipe.plan(args, "cifar100", "emo", 2)
    assert (plan.devices, plan.per_round, plan.rounds, plan.batch_size) == (100, 20, 200, 16)
    assert (plan.model.name, plan.model.width, plan.seed) == ("mobilenet6", 1.0, 2)
    assert plan.training.lr == 0.01


def test_figure4_takes_the_runs_that_table2_has_left(tmp_path, made):
    words = [
        "--data-dir",
        str(tmp_path),
        "--rounds",
        "5",
        "--seeds",
        "0",
        "1",
        "--work",
        str(tmp_path / "runs"),
    ]
    assert table2.main(words) == 0
    assert len(made) == 8
    rows, plot = tmp_path / "rows.json", tmp_path / "figure.svg"
    assert figure4.main([*words, "--json", str(rows), "--plot", str(plot)]) == 0
    assert len(made) == 8
    found = json.loads(rows.read_text())
    assert {(row["method"], row["seed"]) for row in found} == {
        (method, seed) for method in table2.METHODS for seed in (0, 1)
    }
    assert {row["round"] for row in found} == {5}
    emo = next(row for row in found if row["method"] == "emo")
    assert emo["lan_bytes"] > 0
    assert emo["virtual_s"] == 12.5
    assert plot.stat().st_size > 5000


def test_what_is_wrong_is_said_in_a_line(tmp_path, capsys):
    words = ["--data-dir", str(tmp_path), "--scenario", str(tmp_path / "none.yaml")]
    assert table2.main(words) == 2
    assert "none.yaml: cannot be read" in capsys.readouterr().err
