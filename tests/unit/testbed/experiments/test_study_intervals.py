"""The study of policies and codecs, small: what it records, what it counts, that it goes on where it stopped."""

import json

import numpy as np
import pytest

from emo.config import Model, Overlay
from emo.errors import DataError
from testbed.experiments import cache, intervals, overlay, trace
from testbed.experiments.arm import Arm, run

SPEC = Model(name="cnn", width=0.5, input=(1, 8, 8), classes=10)
OPTIONS = trace.Options("digits", None, SPEC, devices=5, per_round=3, lr=0.05)
SMALL = [
    "--dataset",
    "digits",
    "--model",
    "cnn",
    "--width",
    "0.5",
    "--devices",
    "5",
    "--per-round",
    "3",
    "--rounds",
    "2",
]


def quiet(_text):
    pass


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace")
    trace.record(folder, OPTIONS, 3, quiet)
    return folder


def test_a_recording_goes_on_where_it_stopped_to_the_same_bits(recorded, tmp_path):
    trace.record(tmp_path, OPTIONS, 1, quiet)
    trace.record(tmp_path, OPTIONS, 3, quiet)
    for number in (1, 2, 3):
        one, two = trace.read(recorded, number), trace.read(tmp_path, number)
        assert one.activations.tobytes() == two.activations.tobytes()
        assert all(one.weights[name].tobytes() == two.weights[name].tobytes() for name in one.weights)


def test_a_recording_of_another_run_is_not_taken(recorded):
    other = trace.Options("digits", None, SPEC, devices=5, per_round=3, lr=0.04)
    with pytest.raises(DataError, match="other options"):
        trace.record(recorded, other, 3, quiet)
    with pytest.raises(DataError, match="round 9"):
        trace.read(recorded, 9)


def test_batches_are_offered_side_by_side_and_each_with_its_rows(recorded):
    one = trace.read(recorded, 1)
    offered = list(one.offered())
    assert len({device for device, *_ in offered[:3]}) == 3
    assert len(offered) == len(one.batches)
    rows = {(device, batch): labels for device, batch, _, labels in offered}
    at = 0
    for device, batch, samples in one.batches.tolist():
        assert (rows[device, batch] == one.labels[at : at + samples]).all()
        at += samples


def rows_of(recorded, policy, codec):
    arm = Arm(policy, codec, 2, Overlay(replay_ratio=0.5))
    return run(arm, OPTIONS, recorded, 3, 2, quiet)


def test_always_sending_sends_everything_and_counts_real_bytes(recorded):
    rows = rows_of(recorded, "always", "fp32")
    assert [row["round"] for row in rows] == [2, 3]
    last = rows[-1]
    assert last["sent_fraction"] == 1.0
    values = sum(trace.read(recorded, number).activations.nbytes for number in (1, 2, 3))
    assert last["bytes_sfl"] == 2 * values
    assert 0.2 * values < last["bytes_activations"] < 1.1 * values
    assert last["reduction"] == last["bytes_sfl"] / (last["bytes_activations"] + last["bytes_control"])


def test_sending_less_often_and_in_fewer_bits_costs_fewer_bytes(recorded):
    sizes = [
        rows_of(recorded, policy, codec)[-1]["bytes_activations"]
        for policy, codec in [("always", "fp32"), ("always", "int4"), ("always", "int2"), ("once", "int2")]
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4
    assert rows_of(recorded, "always", "int4-delta")[-1]["bytes_activations"] < sizes[1]


def test_an_arm_gives_the_same_rows_twice_also_without_what_it_kept(recorded):
    first = rows_of(recorded, "svcca", "int3-delta")
    assert rows_of(recorded, "svcca", "int3-delta") == first
    for kept in recorded.glob("svcca-int3-delta-*.json"):
        kept.unlink()
    assert rows_of(recorded, "svcca", "int3-delta") == first


def test_the_command_writes_every_row_and_a_plot(tmp_path, capsys):
    out, plot = tmp_path / "rows.json", tmp_path / "plot.svg"
    arms = ["--arms", "always:fp32", "svcca@2:int2-delta"]
    assert intervals.main([*SMALL, *arms, "--json", str(out), "--plot", str(plot)]) == 0
    rows = json.loads(out.read_text())
    wanted = "policy codec sent_fraction bytes_activations bytes_sfl reduction accuracy_bagged accuracy_fl round seed"
    assert all(set(wanted.split()) <= set(row) for row in rows)
    assert {(row["policy"], row["max_interval"]) for row in rows} == {("always", 4.0), ("svcca", 2.0)}
    assert plot.stat().st_size > 1000
    assert "svcca@2" in capsys.readouterr().out
    assert np.isfinite([row["accuracy_bagged"] for row in rows]).all()


def test_studies_of_cache_and_overlay_share_its_recordings(tmp_path, capfd):
    work = ["--work", str(tmp_path / "work")]
    assert cache.main([*SMALL, *work, "--arms", "fresh@0.5", "mixed@1.0:fixed(2)"]) == 0
    shown = capfd.readouterr()
    assert "recorded" in shown.err
    lines = {line.split()[0]: line.split() for line in shown.out.splitlines()[1:]}
    assert 0 < int(lines["fresh@0.5"][2]) < int(lines["mixed@1:fixed(2)"][2])  # batches that its disk keeps
    plot = tmp_path / "plot.svg"
    arms = ["--arms", "replay_ratio=1,flip=true", "-", "--plot", str(plot)]
    assert overlay.main([*SMALL, *work, *arms]) == 0
    shown = capfd.readouterr()
    assert "recorded" not in shown.err
    assert [line.split()[0] for line in shown.out.splitlines()[1:]] == ["replay_ratio=1.0,flip=True", "-"]
    assert plot.stat().st_size > 1000
    assert overlay.main([*SMALL, *work, "--arms", "flip=7"]) == 2
    assert overlay.main([*SMALL, *work, "--arms", "flop=1"]) == 2


@pytest.mark.parametrize(
    ("arm", "text"),
    [("svca:int4", "must be svcca"), ("svcca:zip", "codec"), ("svcca@x:int4", "number"), ("int4", "svcca")],
)
def test_an_arm_that_is_none_is_said_before_any_work(arm, text, capsys):
    assert intervals.main(["--arms", arm]) == 2
    assert text in capsys.readouterr().err
