"""The files a run goes on from: whole, bounded, of this run's settings, or not believed."""

import contextlib
import json
import os
import zlib

import numpy as np
import pytest
import safetensors.numpy
from fleet import MODEL
from hypothesis import given
from hypothesis import strategies as st
from pydantic import RootModel

from cloud_app.aggregation import exact_mean
from cloud_app.ensemble.run_archive import Edge
from cloud_app.rounds.checkpoint import Checkpoints, agree
from cloud_app.rounds.round import Round
from cloud_app.rounds.state import Closed, Opened, State, settings
from emo import snapshot_file
from emo.config import CloudConfig
from emo.errors import CheckpointError, ConfigError
from emo.journal import Journal
from emo.models.state import PLAIN

LIKE = {"w": np.zeros((2, 3), np.float32), "steps": np.array(0)}
VALUES = {"model": MODEL, "rounds": {"rounds": 9, "seed": 3}, "overlays": {"edges": ["e-1"]}}
CONFIG = CloudConfig.model_validate(VALUES)


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _handle: None)


def state(number=4):
    model = {"w": np.full((2, 3), number / 7, np.float32), "steps": np.array(number)}
    total = exact_mean.init(model)
    total.add({"w": model["w"] * 2, "steps": np.array(5)}, 11)
    closed = Closed(
        round=number - 1,
        updates=1,
        sampled=2,
        loss=0.5,
        seconds=1.5,
        members={"a": 3},
        left_out={"b": "late"},
    )
    return State(
        settings=settings(CONFIG),
        run="run-1",
        phase="collecting",
        round=number,
        devices={"a": 11, "b": 12},
        edges={"e-1"},
        opened=Opened(sampled=("a", "b"), heard={"a": 11}, loss=2.75),
        before=(number - 1, ["a"]),
        trained=33,
        updates=3,
        closed=closed,
        answered={"e-1"},
        overlays={"e-1": Edge(steps=7, attempted=9, sent=8)},
        weights=model,
        sum=total,
        overlay_weights={"e-1": {"head.w": np.ones(2, np.float32)}},
    )


def same(one, two):
    def arrays(each):
        parts = [each.weights, each.sum.high, each.sum.low, each.overlay_weights["e-1"]]
        return [{name: (a.dtype, a.shape, a.tobytes()) for name, a in part.items()} for part in parts]

    counts = [(each.sum.samples, each.sum.updates) for each in (one, two)]
    return one.model_dump() == two.model_dump() and arrays(one) == arrays(two) and counts[0] == counts[1]


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_is_loaded_by_another_process_and_only_the_last_two_are_kept(tmp_path):
    keep = Checkpoints(tmp_path / "run", Journal())
    for number in range(2, 7):
        assert keep.save(state(number))
    assert files_in(tmp_path / "run") == ["00000004.safetensors", "00000005.safetensors"]
    again = Checkpoints(tmp_path / "run", Journal())
    assert same(again.load(CONFIG, LIKE), state(6))
    again.save(state(7))
    assert files_in(tmp_path / "run") == ["00000005.safetensors", "00000006.safetensors"]
    again.clear()
    assert Checkpoints(tmp_path / "run", Journal()).load(CONFIG, LIKE) is None


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    (tmp_path / ".3.tmp").write_bytes(b"half")
    keep = Checkpoints(tmp_path, Journal())
    assert files_in(tmp_path) == []
    assert keep.load(CONFIG, LIKE) is None


def two_kept(folder):
    keep = Checkpoints(folder, Journal())
    for number in (2, 3):
        keep.save(state(number))
    return folder / "00000002.safetensors"


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "longer", "stranger"])
def test_a_damaged_one_is_set_aside_and_the_one_before_it_counts(tmp_path, damage):
    newest = two_kept(tmp_path)
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= damage == "flipped"
    newest.write_bytes(
        {"cut": data[:-100], "empty": b"", "longer": data + b"x", "stranger": os.urandom(5000)}.get(damage, data)
    )
    journal = Journal()
    assert same(Checkpoints(tmp_path, journal).load(CONFIG, LIKE), state(2))
    assert journal.counts["checkpoint.damaged"] == 1
    assert files_in(tmp_path) == ["00000001.safetensors", "00000002.damaged"]


def crafted(change):
    """A whole file that says something else: `change` gets its arrays and its record."""
    told = state()
    arrays = {f"model/{name}": array for name, array in told.weights.items()}
    arrays |= {f"high/{name}": array for name, array in told.sum.high.items()}
    arrays |= {f"low/{name}": array for name, array in told.sum.low.items()}
    arrays["overlay/e-1/head.w"] = np.ones(2, np.float32)
    said = told.model_dump(mode="json")
    change(arrays, said)
    return b"".join(snapshot_file.pack("cloud checkpoint", RootModel(said), arrays))


CHANGES = {
    "another shape": lambda a, _: a.update({"model/w": np.zeros((3, 2), np.float32)}),
    "NaN": lambda a, _: a.update({"model/w": np.full((2, 3), np.nan, np.float32)}),
    "an array too many": lambda a, _: a.update({"model/more": np.zeros(1, np.float32)}),
    "an array of no part": lambda a, _: a.update({"else/w": np.zeros(1, np.float32)}),
    "an overlay of nobody": lambda a, _: a.update({"overlay/e-9/w": np.zeros(1, np.float32)}),
    "half a sum": lambda a, _: a.pop("low/w"),
    "a sum in float32": lambda a, _: a.update({"high/w": np.zeros((2, 3), np.float32)}),
    "an infinite sum": lambda a, _: a.update({"high/w": np.full((2, 3), np.inf)}),
    "round 0": lambda _, s: s.update(round=0),
    "a phase of its own": lambda _, s: s.update(phase="closing"),
    "a path for an id": lambda _, s: s["opened"].update(heard={"../a": 3}),
    "an open round that is over": lambda _, s: s.update(phase="waiting"),
    "a sum of no round": lambda _, s: s.update(phase="waiting", opened=None),
    "a field too many": lambda _, s: s.update(more=1),
    "no run": lambda _, s: s.pop("run"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_whole_file_that_says_what_cannot_be_is_not_believed(tmp_path, name):
    newest = two_kept(tmp_path)
    newest.write_bytes(crafted(CHANGES[name]))
    journal = Journal()
    assert same(Checkpoints(tmp_path, journal).load(CONFIG, LIKE), state(2))
    assert journal.counts["checkpoint.damaged"] == 1


def test_the_crafted_file_is_good_but_for_what_is_changed(tmp_path):
    two_kept(tmp_path).write_bytes(crafted(lambda _arrays, _said: None))
    assert same(Checkpoints(tmp_path, Journal()).load(CONFIG, LIKE), state(4))


@given(data=st.binary(max_size=300))
def test_no_bytes_raise_anything_else(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    body = len(data).to_bytes(8, "little") + data
    (folder / "00000001.safetensors").write_bytes(body + zlib.crc32(body).to_bytes(4, "little"))
    with contextlib.suppress(ConfigError):  # of another version of EMO
        assert Checkpoints(folder, Journal()).load(CONFIG, LIKE) is None


def old_file():
    """What the version before this format wrote: safetensors, then the crc32 of its bytes."""
    said = {
        "settings": settings(CONFIG),
        "run": "run-1",
        "phase": "waiting",
        "round": 2,
        "online": {},
        "edges": [],
    }
    said |= {
        "sampled": [],
        "cap": None,
        "heard": {},
        "loss": 0,
        "before": [1, ["a"]],
        "trained": 9,
        "updates": 1,
    }
    said |= {"closed": None, "answered": [], "overlays": {}}
    metadata = {"format": "1", "standing": json.dumps(said)}
    body = safetensors.numpy.save({f"model/{name}": array for name, array in LIKE.items()}, metadata)
    return body + zlib.crc32(body).to_bytes(4, "little")


def test_a_run_of_the_version_before_is_not_lost_silently_and_a_new_one_gets_past_it(tmp_path):
    path, old = two_kept(tmp_path), old_file()
    path.write_bytes(old)
    keep = Checkpoints(tmp_path, Journal())
    with pytest.raises(ConfigError, match=r"another version of EMO.*Finish the run .* --new-run$"):
        keep.load(CONFIG, LIKE)
    with pytest.raises(ConfigError, match=r"another version"):
        agree(tmp_path, CONFIG, LIKE, PLAIN)
    assert path.read_bytes() == old
    keep.clear()
    assert keep.load(CONFIG, LIKE) is None
    assert keep.save(state())
    assert same(keep.load(CONFIG, LIKE), state())


def test_a_damaged_file_of_the_version_before_says_the_same(tmp_path):
    (tmp_path / "00000001.safetensors").write_bytes(old_file()[:-1] + b"x")
    with pytest.raises(ConfigError, match="another version"):
        Checkpoints(tmp_path, Journal()).load(CONFIG, LIKE)


def test_the_updates_that_a_rule_keeps_one_by_one_are_asked_for_again(tmp_path):
    config = CloudConfig.model_validate(VALUES | {"rounds": {"rounds": 9, "seed": 3, "aggregate": "median"}})
    kept = state()
    kept.settings, kept.sum = settings(config), None
    Checkpoints(tmp_path, Journal()).save(kept)
    found = Checkpoints(tmp_path, Journal()).load(config, LIKE)
    this = Round(config, found, found.opened, None)
    assert (found.opened.heard, found.opened.loss, list(this.missing)) == ({}, 0.0, ["a", "b"])


def test_a_record_that_is_too_large_ends_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot_file, "HEAD", 100)
    journal = Journal()
    assert not Checkpoints(tmp_path, journal).save(state())
    assert journal.counts["checkpoint.unwritten"] == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rounds": {"rounds": 9, "seed": 4}}, "rounds.seed is 4, was 3"),
        ({"training": {"lr": 0.5}}, "training.lr is 0.5, was 0.01"),
        ({"overlays": {"edges": ["e-2"]}}, "overlays.edges is ['e-2'], was ['e-1']"),
        ({"model": {"name": "vgg6", "input": [3, 32, 32]}}, "model.name is 'vgg6', was 'cnn'"),
    ],
)
def test_other_settings_are_named_with_what_to_do_and_nothing_is_lost(tmp_path, changes, named):
    two_kept(tmp_path)
    other = CloudConfig.model_validate(VALUES | changes)
    like = {"w": np.zeros(1, np.float32)} if "model" in changes else LIKE
    with pytest.raises(ConfigError) as caught:
        Checkpoints(tmp_path, Journal()).load(other, like)
    assert named in str(caught.value)
    assert "--new-run" in str(caught.value)
    assert same(Checkpoints(tmp_path, Journal()).load(CONFIG, LIKE), state(3))


def test_what_changes_no_bit_may_change(tmp_path):
    two_kept(tmp_path)
    rounds = {"rounds": 9, "seed": 3, "min_devices": 2, "quorum": 0.5, "deadline_s": 7, "give_up_s": 8}
    overlays = {"edges": ["e-1"], "wait_s": 3, "start_s": 1}
    other = VALUES | {"rounds": rounds, "overlays": overlays, "wan": {"host": "elsewhere"}, "threads": 3}
    assert Checkpoints(tmp_path, Journal()).load(CloudConfig.model_validate(other), LIKE) is not None


def test_a_setting_of_another_version_of_emo_is_no_other_setting(tmp_path):
    def change(_arrays, said):
        said["settings"]["rounds.of_an_older_version"] = 1
        del said["settings"]["rounds.model"]

    two_kept(tmp_path).write_bytes(crafted(change))
    assert Checkpoints(tmp_path, Journal()).load(CONFIG, LIKE) is not None


def test_a_folder_that_cannot_be_is_said(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(CheckpointError, match="run: cannot be used"):
        Checkpoints(tmp_path / "run", Journal())


def test_what_is_not_needed_takes_a_twentieth_of_the_time(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("cloud_app.rounds.checkpoint.time.monotonic", lambda: now[0])

    def slow(*_args, **_options):
        now[0] += 2

    keep = Checkpoints(tmp_path, Journal())
    assert keep.due()
    monkeypatch.setattr("emo.files.write", slow)
    keep.save(state())
    now[0] += 39
    assert not keep.due()
    now[0] += 1
    assert keep.due()
