"""A run: what is refused before it, what it writes, and that it goes on to the same bits where it was stopped."""

import threading
from dataclasses import replace

import pytest
from simulated import Drawn, plan

from cloud_app.ensemble import run_archive
from emo.data import registry
from emo.errors import ConfigError, DataError, EmoError, ModelError, PartitionError
from testbed.simulation import run as simulate
from testbed.simulation import run_folder
from testbed.timing import scenario

PAPER = scenario.load(None)


@pytest.fixture
def drawn(monkeypatch):
    """The class of the methods that `simulate.make` gives."""

    class Mine(Drawn):
        made = closed = 0

    def make(plan, _scenario, _training, _test, workers, _device, folder):
        assert workers > 0
        Mine.made += 1
        return Mine(plan, folder)

    monkeypatch.setattr(simulate, "make", make)
    return Mine


def run(out, asked=None, **options):
    said = options.pop("said", [])
    return simulate.run(asked or plan(), PAPER, out, say=said.append, **options)


def without_real_time(there):
    return [
        row.model_copy(update={"real_s": 0.0, "total": row.total.model_copy(update={"real_s": 0.0})})
        for row in there.rows
    ]


def assert_same(one, two):
    assert without_real_time(one) == without_real_time(two)
    assert one.result.accuracies == two.result.accuracies
    parts = one.weights(), two.weights()
    assert parts[0].keys() == parts[1].keys() == {"trunk", "head"}
    for part, arrays in parts[0].items():
        assert all(array.tobytes() == parts[1][part][name].tobytes() for name, array in arrays.items())


def test_a_run_writes_a_line_a_round_and_its_result(tmp_path, drawn):
    said: list[str] = []
    closed: list[run_folder.Row] = []
    there = run(tmp_path / "run", plan(method="emo"), said=said, closed=closed.append)
    rows = run_folder.Run(tmp_path / "run").rows
    assert rows == closed == there.rows
    assert [row.round for row in rows] == list(range(1, 8))
    assert [bool(row.accuracies) for row in rows] == [False, False, True, False, False, True, True]
    first, last = rows[0], rows[-1]
    assert first.lan.up == {"ActivationBatch": 1200, "TapReport": 28}
    assert first.lan.down == {"Interval": 44}
    assert first.wan.up == {"Update": 4 * 1001}
    assert first.wan.down == {"GlobalModel": 8000}
    assert last.wan.up["OverlayWeights"] == 1100
    assert (first.devices, first.arrived, first.sent_fraction) == (4, 3, 0.75)
    assert last.total.lan == sum(row.lan.total for row in rows) == 7 * 1272
    assert last.total.wan == sum(row.wan.total for row in rows)
    assert last.total.virtual_s == 17.5
    assert last.total.sent == 42
    assert there.result.total == last.total
    assert sorted(path.name for path in there.out.iterdir()) == [
        *("plan.json", "result.json", "rounds.jsonl", "weights.safetensors")
    ]
    assert any(line.startswith("assumed: ") for line in said)
    assert sum("round" in line and "/7:" in line for line in said) == 7
    assert drawn.closed == 1


def test_in_sfl_cloud_everything_crosses_the_wan_and_at_an_edge_the_servers_parts_both_ways(tmp_path, drawn):
    work, took = Drawn(plan(method="emo", rounds=1), _empty(tmp_path / "a")).round(1)
    work = replace(work, overlays_down=(500, 700))
    cloud = run_folder.row("sfl-cloud", work, took, 0.0, {}, run_folder.Total())
    assert cloud.lan.total == 0
    assert cloud.wan.up["ActivationBatch"] == 1200
    edge = run_folder.row("sfl-edge", work, took, 0.0, {}, run_folder.Total())
    assert (edge.wan.up["OverlayWeights"], edge.wan.down["OverlayWeights"]) == (1100, 1200)
    assert edge.lan.up["ActivationBatch"] == 1200


def _empty(folder):
    folder.mkdir()
    return folder


@pytest.mark.parametrize("stop_at", [1, 4, 6])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path, drawn, stop_at):
    whole = run(tmp_path / "whole")
    drawn.stop, drawn.stop_at = threading.Event(), stop_at
    assert run(tmp_path / "parts", stop=drawn.stop) is None
    assert len(run_folder.Run(tmp_path / "parts").rows) == stop_at
    assert (tmp_path / "parts" / f"checkpoint-{stop_at}").is_dir()
    drawn.stop_at = -1
    parts = run(tmp_path / "parts", resume=True, workers=3)
    assert_same(whole, parts)
    assert sorted(path.name for path in parts.out.glob("*")) == sorted(p.name for p in whole.out.glob("*"))


@pytest.mark.parametrize("fail_at", [2, 3, 4, 7])
def test_a_run_that_died_goes_on_from_its_last_checkpoint(tmp_path, drawn, fail_at):
    whole = run(tmp_path / "whole")
    drawn.fail_at = fail_at
    with pytest.raises(OSError, match="disk is full"):
        run(tmp_path / "parts", checkpoint=2)
    assert drawn.closed == 2  # whatever happens
    out = tmp_path / "parts"
    assert len(list(out.glob("checkpoint-*"))) == (fail_at > 2)
    assert not (out / "work").exists()
    with (out / "rounds.jsonl").open("a") as file:
        file.write('{"round": 99, "dev')  # the line that it was writing
    (out / "checkpoint.part").mkdir()
    drawn.fail_at = -1
    parts = run(out, resume=True, checkpoint=2)
    assert_same(whole, parts)


def test_the_last_round_again_when_it_died_before_the_result(tmp_path, drawn, monkeypatch):
    whole = run(tmp_path / "whole")
    with monkeypatch.context() as broken:
        broken.setattr(run_archive, "write_weights", None)
        with pytest.raises(TypeError):
            run(tmp_path / "parts", checkpoint=100)
    assert len(run_folder.Run(tmp_path / "parts").rows) == 7
    assert_same(whole, run(tmp_path / "parts", resume=True))


def test_a_run_that_is_over_is_not_run_again(tmp_path, drawn):
    first = run(tmp_path / "run")
    made = drawn.made
    again = run(tmp_path / "run", resume=True)
    assert drawn.made == made
    assert again.result == first.result


def test_a_folder_that_holds_a_run_is_not_overwritten_and_another_plan_does_not_go_on(tmp_path, drawn):
    run(tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a run already; --resume"):
        run(tmp_path / "run")
    other = plan(training={"lr": 0.5}, seed=3)
    with pytest.raises(ConfigError, match=r"seed is 0 there, not 3; training.lr is 0.01 there, not 0.5"):
        run(tmp_path / "run", other, resume=True)
    slow = PAPER.model_copy(update={"drop_outs": 0.5})
    with pytest.raises(ConfigError, match=r"drop_outs is 0.0 there, not 0.5"):
        simulate.run(plan(), slow, tmp_path / "run", resume=True)
    elsewhere = plan(data={"name": "digits", "dir": str(tmp_path)})
    assert run(tmp_path / "run", elsewhere, resume=True) is not None  # data may be moved


@pytest.mark.parametrize(
    ("values", "kind", "text"),
    [
        ({"devices": 4000, "per_round": 4}, PartitionError, "4000 devices"),
        ({"samples": 200}, PartitionError, "2000 samples"),
        ({"scheme": "shards", "devices": 1000}, PartitionError, "shards"),
        ({"per_round": 11}, ConfigError, "per_round"),
        ({"method": "emo", "devices": 5, "edges": (0.99, 0.01)}, ConfigError, "edge"),
        ({"model": {"name": "cnn", "input": (3, 8, 8)}}, DataError, "model.input"),
        ({"model": {"name": "vgg6", "input": (1, 8, 8)}, "method": "emo"}, ModelError, "halves its input"),
        (
            {"model": {"name": "simulated:no_overlay", "input": (1, 8, 8)}, "method": "emo"},
            EmoError,
            "overlay",
        ),
        ({"data": {"name": "cifar10"}}, DataError, "cifar-10"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(tmp_path, drawn, values, kind, text):
    with pytest.raises(kind, match=text):
        run(tmp_path / "run", plan(**values))
    assert drawn.made == 0
    assert not (tmp_path / "run").exists()


def test_a_gpu_that_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for method in ("sfl-cloud", "emo"):
        with pytest.raises(ConfigError, match="no GPU"):
            simulate.check(plan(method=method), PAPER, registry.load(plan().data)[0], "cuda")


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("plan.json", "{}", "version"),
        ("plan.json", "\xff", "plan.json"),
        ("rounds.jsonl", '{"round": 1}\n', "line 1: devices"),
        ("rounds.jsonl", "[1]\n", "line 1"),
        ("result.json", '{"rounds": 0}', "result.json"),
    ],
)
def test_a_damaged_folder_is_said(tmp_path, drawn, name, text, match):
    run(tmp_path / "run")
    (tmp_path / "run" / name).write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=match):
        run_folder.Run(tmp_path / "run")


def test_lines_that_are_missing_are_said(tmp_path, drawn):
    there = run(tmp_path / "run")
    path = there.out / "rounds.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[3:]))
    with pytest.raises(DataError, match="line 3: holds round 4"):
        run_folder.Run(there.out)
    path.write_text("".join(lines[:2]))
    (there.out / "checkpoint-5").mkdir()
    with pytest.raises(DataError, match="checkpoint of round 5"):
        run_folder.Run(there.out).back()
    (there.out / "weights.safetensors").write_bytes(b"PK\3\4 no")
    with pytest.raises(DataError, match=r"weights.safetensors: is cut or damaged"):
        run_folder.Run(there.out).weights()
