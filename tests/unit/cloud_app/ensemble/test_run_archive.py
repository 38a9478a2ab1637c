"""A finished run on the disk: it comes back as it was, and nothing else is believed."""

import contextlib
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_app.ensemble.run_archive import Edge, Record, read, read_weights, write, write_weights
from emo import __version__, files
from emo.config import Data, Model
from emo.errors import ConfigError, DataError, ExportError
from testbed.plan import Plan
from testbed.simulation import run_folder
from testbed.timing import scenario

RECORD = Record(
    emo=__version__,
    run="20261121T101500-7",
    rounds=3,
    model=Model(),
    data=Data(heldout=0.1),
    combine="logits",
    edges={"east": Edge(steps=4, attempted=9, sent=5)},
)
PARTS = {
    "trunk": {"0.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(7, np.int64)},
    "head": {"w": np.zeros(0, np.float32)},
    "overlay-east": {"w": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))},
}


def _same(found, expected):
    assert {part: list(arrays) for part, arrays in found.items()} == {
        part: list(arrays) for part, arrays in expected.items() if arrays
    }
    for part, arrays in expected.items():
        for name, array in arrays.items():
            assert found[part][name].dtype == array.dtype
            np.testing.assert_array_equal(found[part][name], array)


def test_a_run_comes_back_as_it_was(tmp_path):
    write(tmp_path, RECORD, PARTS)
    record, parts = read(tmp_path)
    assert record == RECORD
    _same(parts, PARTS)
    assert {each.name for each in tmp_path.iterdir()} == {"run.json", "weights.safetensors"}


def test_the_next_run_takes_its_place(tmp_path):
    write(tmp_path, RECORD, PARTS)
    write(tmp_path, RECORD.model_copy(update={"run": "next"}), {"trunk": PARTS["trunk"]})
    record, parts = read(tmp_path)
    assert record.run == "next"
    assert list(parts) == ["trunk"]


def test_a_run_that_was_not_written_to_its_end_is_none(tmp_path, monkeypatch):
    write(tmp_path, RECORD, PARTS)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "write", full)
    with pytest.raises(ExportError, match="No space left"):
        write(tmp_path, RECORD, PARTS)
    with pytest.raises(ExportError, match="no finished run"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("method", "parts", "expected"),
    [
        ("emo", ["trunk", "head", "overlay-1", "overlay-2"], ["trunk", "head", "overlay-1", "overlay-2"]),
        ("fl-small", ["trunk", "head"], ["trunk", "head"]),
        ("fl-large", ["trunk", "head"], ["trunk", "overlay-fl-large"]),
        ("sfl-edge", ["trunk", "head"], ["trunk", "overlay-sfl-edge"]),
    ],
)
def test_a_simulated_run_is_read_too(tmp_path, method, parts, expected):
    plan = Plan(method=method, rounds=5, model=Model(width=0.5), data=Data(seed=3))
    header = run_folder.Header(version="0.1.0", plan=plan, scenario=scenario.load(None), assumptions=("a",))
    (tmp_path / "plan.json").write_text(header.model_dump_json())
    write_weights(tmp_path, {part: {"w": np.ones(2, np.float32)} for part in parts})
    record, found = read(tmp_path)
    assert (record.emo, record.run, record.rounds) == ("0.1.0", tmp_path.name, 5)
    assert (record.model, record.data) == (plan.model, plan.data)
    assert list(found) == expected


@pytest.mark.parametrize("names", [(), ("plan.json",), ("weights.safetensors",), ("result.json", "weights.npz")])
def test_a_folder_without_a_finished_run(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ExportError, match="no finished run"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the text"),
        ("[]", "the text"),
        ("{}", "emo: Field required"),
        (RECORD.model_dump_json().replace('"rounds":3', '"rounds":0'), "rounds: "),
        (RECORD.model_dump_json().replace('"run":', '"runs":'), "run: Field required"),
        ("\ud800".encode("utf-8", "surrogatepass"), "the text"),
    ],
)
@pytest.mark.parametrize("name", ["run.json", "plan.json"])
def test_a_damaged_record_is_said(tmp_path, name, text, why):
    write(tmp_path, RECORD, PARTS)
    (tmp_path / "run.json").rename(tmp_path / name)
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ExportError, match=why if name == "run.json" else name):
        read(tmp_path)


@pytest.mark.parametrize("name", ["run.json", "plan.json"])
def test_weights_of_an_older_version_are_refused_and_kept(tmp_path, name):
    write(tmp_path, RECORD, PARTS)
    (tmp_path / "run.json").rename(tmp_path / name)
    (tmp_path / "weights.safetensors").unlink()
    (tmp_path / "weights.npz").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"weights\.npz: was written by another version .*train again"):
        read(tmp_path) if name == "run.json" else read_weights(tmp_path, DataError)
    assert (tmp_path / "weights.npz").exists()
    write(tmp_path, RECORD, PARTS)
    assert not (tmp_path / "weights.npz").exists(), "another run in its place"


@pytest.mark.parametrize("name", ["tail/w", "w", "../../trunk/w"])
def test_arrays_of_no_part_are_refused(tmp_path, name):
    part, _, rest = name.rpartition("/")
    write(tmp_path, RECORD, {part: {rest: np.ones(3, np.float32)}})
    with pytest.raises(ExportError, match="no part of a run"):
        read(tmp_path)


def test_weights_that_are_missing_are_said(tmp_path):
    write(tmp_path, RECORD, PARTS)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(ExportError, match="is missing; has the run come to its end"):
        read(tmp_path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), cut=st.booleans())
def test_bytes_that_were_changed_never_raise_anything_else(tmp_path, at, value, cut):
    write(tmp_path, RECORD, PARTS)
    path = tmp_path / "weights.safetensors"
    data = bytearray(path.read_bytes())
    place = int(at * len(data))
    if cut:
        del data[place:]
    else:
        data[place] = value
    path.write_bytes(data)
    with contextlib.suppress(ExportError, ConfigError):
        _, parts = read(tmp_path)
        assert sum(array.nbytes for arrays in parts.values() for array in arrays.values()) <= len(data)


def test_run_json_is_for_people_too(tmp_path):
    write(tmp_path, RECORD, PARTS)
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["edges"] == {"east": {"steps": 4, "attempted": 9, "sent": 5}}
