"""A checkpoint is written beside the training, and one that is not as it was written is not believed."""

import errno
import json
import struct
import threading
import zlib

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from overlays import KNOWN, SAMPLER, SETTINGS, network, saved, trained

from edge_app.overlay import checkpoint
from edge_app.overlay.augment import Augment
from edge_app.overlay.checkpoint import NAME, CheckpointFile, State
from emo import files, snapshot_file
from emo.errors import ConfigError
from emo.journal import Journal

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def file(tmp_path):
    with CheckpointFile(tmp_path, Journal()) as made:
        made.folder, made.journal = tmp_path, made._journal
        yield made


def test_it_is_safetensors_with_json_inside(file):
    path = saved(file, trained(2).state())
    with safetensors.safe_open(path, "pt") as opened:
        record = json.loads(opened.metadata()["record"])
        assert (record["run"], record["position"]["steps"], record["sampler"]) == ("run-1", 2, SAMPLER)
        assert opened.get_tensor("weights/0.weight").shape == (8, 3, 3, 3)
    assert [each.name for each in path.parent.iterdir()] == ["checkpoint.safetensors"]


def test_every_dtype_and_the_empty_and_the_scalar_come_back(file):
    kinds = [torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool]
    arrays = {f"weights/{kind}": torch.ones(3, 5).to(kind) for kind in kinds}
    arrays |= {"weights/none": torch.zeros(0, 4), "weights/scalar": torch.tensor(7)}
    arrays["weights/strided"] = torch.arange(12.0).reshape(3, 4).T
    state = State(1, arrays, trained().state().random)
    saved(file, state)
    found = file.load("run-1", state).state.arrays
    assert found.keys() == arrays.keys()
    assert all(found[name].dtype == array.dtype for name, array in arrays.items())
    assert all(torch.equal(found[name], array) for name, array in arrays.items())


def test_none_there_is_no_problem(file):
    assert file.load("run-1", trained().state()) is None
    assert file.journal.counts == {}


def test_another_run_is_not_ours_and_stays_until_ours_replaces_it(file):
    path = saved(file, trained(2).state(), "run-0")
    assert file.load("run-1", trained().state()) is None
    assert path.exists()
    saved(file, trained(3).state())
    assert file.load("run-1", trained().state()).state.steps == 3
    assert file.journal.counts == {}


def test_another_overlay_is_told(file):
    saved(file, trained(2).state())
    assert file.load("run-1", trained(hidden=4).state()) is None
    assert file.journal.counts == {"checkpoint.misfit": 1}


def test_a_momentum_of_a_parameter_that_there_is_not_is_told(file):
    state = trained(2).state()
    state.arrays["momentum/5.weight"] = torch.zeros(3)
    saved(file, state)
    assert file.load("run-1", trained().state()) is None
    assert file.journal.counts == {"checkpoint.misfit": 1}


def test_weights_that_are_not_finite_are_told(file):
    state = trained(2).state()
    state.arrays["momentum/0.weight"][0] = float("nan")
    saved(file, state)
    assert file.load("run-1", trained().state()) is None
    assert file.journal.counts == {"checkpoint.misfit": 1}


def test_a_sampler_too_large_for_a_checkpoint_is_told_and_the_old_one_kept(file, monkeypatch):
    saved(file, trained(2).state())
    monkeypatch.setattr(snapshot_file, "HEAD", 3000)
    file.save("run-1", trained(3).state(), {"much": "x" * 3000}, KNOWN)
    file.close()
    assert file.load("run-1", trained().state()).state.steps == 2
    assert file.journal.counts == {"checkpoint.unwritten": 1}


def is_set_aside(file, path):
    assert file.load("run-1", trained().state()) is None
    assert file.journal.counts["checkpoint.damaged"] == 1
    assert not path.exists()
    assert path.with_suffix(".damaged").exists()
    file.journal.counts.clear()
    assert file.load("run-1", trained().state()) is None  # and is not met again
    return file.journal.counts == {}


@pytest.mark.parametrize("cut", [0, 1, 11, 100, -1])
def test_a_cut_file_is_set_aside(file, cut):
    path = saved(file, trained(1).state())
    path.write_bytes(path.read_bytes()[:cut])
    assert is_set_aside(file, path)


def test_a_file_with_more_in_it_is_set_aside_and_no_more_of_it_is_read(file, monkeypatch):
    path = saved(file, trained(1).state())
    monkeypatch.setattr(snapshot_file, "HEAD", 3000)
    asked, real = [], files.read
    monkeypatch.setattr(files, "read", lambda path, limit: asked.append(limit) or real(path, limit))
    with path.open("ab") as opened:
        opened.truncate(1 << 30)
    assert file.load("run-1", trained().state()) is None
    assert file.journal.counts == {"checkpoint.damaged": 1}
    weights = sum(array.nbytes for array in network().state_dict().values())
    assert asked[0] < 3 * weights + 3100


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_flipped_bit_is_believed(tmp_path_factory, data):
    torch.set_num_threads(1)
    with CheckpointFile(tmp_path_factory.mktemp("flip"), Journal()) as file:
        file.save("run-1", trained(1).state(), SAMPLER, KNOWN)
        file.close()
        content = bytearray(file._path.read_bytes())
        place = data.draw(st.integers(0, 8 * len(content) - 1))
        content[place // 8] ^= 1 << place % 8
        file._path.write_bytes(content)
        assert file.load("run-1", trained().state()) is None
        assert file._journal.counts == {"checkpoint.damaged": 1}


CRC = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


def crafted(head, data=b""):
    """Whole as far as its checksum goes."""
    text = json.dumps(head).encode() if not isinstance(head, bytes) else head
    content = struct.pack("<Q", len(text)) + text + data
    return content + struct.pack("<I", zlib.crc32(content))


def crafted_head(kind="overlay 1", position=None, **changes):
    position = {"steps": 1, "random": Augment(SETTINGS).state()} | (position or {})
    record = {"run": "run-1", "position": position, "sampler": {}, "filter": {}} | changes
    return {"__metadata__": {"emo": kind, "record": json.dumps(record)}, "crc32": CRC}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        crafted(b"junk"),
        crafted(b"[" * 100_000),
        crafted({}),
        crafted({"__metadata__": {"emo": "overlay 1", "record": "3"}, "crc32": CRC}),
        crafted({"__metadata__": {"emo": "overlay 1", "record": "[" * 100_000}, "crc32": CRC}),
        crafted({"crc32": CRC}),
        crafted({"__metadata__": crafted_head()["__metadata__"]}),
        crafted(crafted_head("edge 1")),
        crafted(crafted_head(run=7)),
        crafted(crafted_head(position={"steps": -1})),
        crafted(crafted_head(position={"steps": 1.5})),
        crafted(crafted_head(position={"random": {"bit_generator": "PCG64"}})),
        crafted(crafted_head(sampler=[])),
        crafted(crafted_head(filter={"losses": {"a": "NaN"}})),
        crafted(crafted_head() | {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}),
    ],
)
def test_a_file_made_by_others_is_set_aside(file, content):
    (file.folder / NAME).parent.mkdir()
    (file.folder / NAME).write_bytes(content)
    assert is_set_aside(file, file.folder / NAME)


# As the versions before wrote it.
OLD = {"format": 1, "run": "run-1", "steps": 1, "random": Augment(SETTINGS).state(), "sampler": {}}


@pytest.mark.parametrize(
    "head", [{"__metadata__": {"checkpoint": json.dumps(OLD)}, "crc32": CRC}, crafted_head("overlay 2")]
)
def test_one_of_another_version_is_not_silently_begun_anew(tmp_path, head):
    path = tmp_path / NAME
    path.parent.mkdir()
    path.write_bytes(crafted(head))
    with pytest.raises(ConfigError, match=r"checkpoint\.safetensors: .*another version of EMO.*remove this file"):
        CheckpointFile(tmp_path, Journal())
    with pytest.raises(ConfigError, match=r"another version of EMO"):  # what `emo doctor` tries says so too
        checkpoint.check_version(tmp_path)
    assert path.exists()


def test_what_was_crafted_is_believed_where_it_is_right(file):
    (file.folder / NAME).parent.mkdir()
    (file.folder / NAME).write_bytes(crafted(crafted_head(run="run-0")))
    assert file.load("run-1", trained().state()) is None
    assert file.journal.counts == {}


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_leaves_the_one_before(file, monkeypatch, error):
    path = saved(file, trained(2).state())

    def fails(path, *pieces, synced):
        raise OSError(error, "no")

    with monkeypatch.context() as patched:
        patched.setattr(files, "write", fails)
        saved(file, trained(3).state())
    assert file.journal.counts == {"checkpoint.unwritten": 1}
    assert file.load("run-1", trained().state()).state.steps == 2
    saved(file, trained(4).state())
    assert file.load("run-1", trained().state()).state.steps == 4
    path.unlink()
    path.mkdir()
    assert file.load("run-1", trained().state()) is None
    assert file.journal.counts["checkpoint.unreadable"] == 1


def test_a_killed_writers_half_is_gone_at_the_next_start(tmp_path):
    ours, another = tmp_path / "overlay" / ".7.tmp", tmp_path / ".7.tmp"
    ours.parent.mkdir()
    for path in (ours, another):
        path.write_bytes(b"half")
    CheckpointFile(tmp_path, Journal())
    assert not ours.exists()
    assert another.exists()


def test_saving_returns_at_once_and_of_those_that_wait_the_newest_is_written(file, monkeypatch):
    going, go_on, written = threading.Event(), threading.Event(), []
    real = files.write

    def slow(path, *pieces, synced):
        going.set()
        assert go_on.wait(20)
        real(path, *pieces, synced=synced)
        with safetensors.safe_open(path, "pt") as opened:
            written.append(json.loads(opened.metadata()["record"])["position"]["steps"])

    monkeypatch.setattr(files, "write", slow)
    file.save("run-1", trained(1).state(), {}, KNOWN)
    assert going.wait(20)
    for steps in (2, 3, 4):
        file.save("run-1", trained(steps).state(), {}, KNOWN)
    assert written == []
    go_on.set()
    file.close()
    assert written == [1, 4]
    file.close()
    file.save("run-1", trained(5).state(), {}, KNOWN)  # and it goes on after that
    file.close()
    assert written == [1, 4, 5]
    assert not [each for each in threading.enumerate() if each.name == "checkpoint"]
