"""A version is served when it answers as it did where it was exported; the one before goes on where it does not."""

import asyncio
import json
import signal
import threading
import time

import numpy as np
import pytest
from loops import endless
from onnx import TensorProto, helper, numpy_helper, save

from cloud_app.serving import known_answer, registry
from cloud_app.serving.batching import Limits
from cloud_app.serving.infer_request import Refused
from cloud_app.serving.model import Served
from cloud_app.serving.registry import Models
from cloud_app.serving.repository import Repository
from emo.errors import ServeError

LABELS = ("cat", "dog")


def write(path, scale=1.0, dtype=TensorProto.FLOAT):
    """logits: two features of each sample, times `scale`; probabilities: their softmax."""
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    weights = [numpy_helper.from_array(np.float32(scale), "scale")]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("logits", "probabilities")]
    inputs = [helper.make_tensor_value_info("images", dtype, ["n", 2])]
    graph = helper.make_graph(nodes, "two", inputs, outputs, weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def opened(path):
    return Served.open(path, "two", 1, LABELS, 1)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.UINT8])
def test_a_file_passes_its_own_test(tmp_path, dtype):
    onnx = write(tmp_path / "a.onnx", dtype=dtype)
    stored = known_answer.make(onnx)
    known_answer.check(opened(onnx), stored)
    known_answer.check(opened(onnx), None)
    assert stored == known_answer.make(onnx)


def test_other_weights_and_answers_that_are_not_finite_do_not(tmp_path):
    stored = known_answer.make(write(tmp_path / "a.onnx"))
    known_answer.check(opened(write(tmp_path / "b.onnx", 1.001)), stored)  # as another processor may round
    with pytest.raises(ServeError, match=r"model 'two' version 1: self-test: logits is off by 0\.\d+ "):
        known_answer.check(opened(write(tmp_path / "b.onnx", 1.1)), stored)
    broken = opened(write(tmp_path / "c.onnx", np.nan))
    for each in (stored, None):
        with pytest.raises(ServeError, match="no finite answer"):
            known_answer.check(broken, each)


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored.pop("answer"),
        lambda stored: stored.update(request=[]),
        lambda stored: stored["request"].update(inputs=[]),
        lambda stored: stored["answer"]["outputs"].pop(),
        lambda stored: stored["answer"]["outputs"][0]["data"].pop(),
        lambda stored: stored["answer"]["outputs"][0].update(data=["a"]),
        lambda stored: stored["answer"]["outputs"][1].update(data=[float("nan")] * 4),
        lambda stored: stored["request"]["inputs"][0].update(shape=[4, 1]),
    ],
)
def test_a_damaged_test_is_none(tmp_path, change):
    onnx = write(tmp_path / "a.onnx")
    stored = json.loads(known_answer.make(onnx))
    change(stored)
    with pytest.raises(ServeError, match="model 'two' version 1: self-test: "):
        known_answer.check(opened(onnx), json.dumps(stored))


@pytest.fixture
def repository(tmp_path):
    made = Repository(tmp_path / "models")
    add(made, tmp_path)
    return made


def add(repository, folder, scale=1.0, stored=None):
    onnx = write(folder / "in.onnx", scale)
    return repository.add("two", onnx, LABELS, (2,), "float32", stored or known_answer.make(onnx))


def started(repository):
    models = Models(repository, Limits(), 1)
    models.start()
    return models


def served(models):
    return models.find("two", None).served.signature.version


def test_the_newest_that_passes_is_served_at_start(repository, tmp_path):
    assert served(started(repository)) == 1
    add(repository, tmp_path)
    assert served(started(repository)) == 2
    add(repository, tmp_path, 2.0, repository.selftest("two", 1))
    models = started(repository)
    assert served(models) == 2
    assert (models.loads, models.load_failures) == (2, 1)
    repository.promote("two", 1)
    assert served(started(repository)) == 1


def test_a_failed_version_is_tried_once_and_again_when_asked_for(repository, tmp_path):
    models = started(repository)
    add(repository, tmp_path, 2.0, repository.selftest("two", 1))
    for _ in range(3):
        models.refresh()
    assert (served(models), models.load_failures) == (1, 1)
    with pytest.raises(ServeError, match="is off by"):
        models.load("two")
    assert (served(models), models.load_failures) == (1, 2)
    add(repository, tmp_path)
    models.refresh()
    assert served(models) == 3
    assert [(row["version"], row["state"]) for row in models.index(ready=False)] == [
        ("1", "UNAVAILABLE"),
        ("2", "UNAVAILABLE"),
        ("3", "READY"),
    ]


def test_no_version_that_can_be_served_ends_the_start(tmp_path):
    repository = Repository(tmp_path / "models")
    with pytest.raises(ServeError, match="holds no model"):
        started(repository)
    add(repository, tmp_path, np.nan, '{"request": {}, "answer": {"outputs": []}}')
    with pytest.raises(ServeError, match="self-test"):
        started(repository)


def test_unloaded_stays_so_until_it_is_loaded_by_name(repository):
    models = started(repository)
    models.unload("two")
    models.refresh()
    with pytest.raises(Refused, match="there are: none"):
        models.find("two", None)
    with pytest.raises(Refused):
        models.unload("two")
    assert models.index(ready=False)[0]["reason"] == "unloaded"
    models.load("two")
    assert served(models) == 1
    assert len(models.stats()) == 1  # its figures went on


def test_a_new_name_is_taken_up_and_one_that_went_is_not_dropped(repository, tmp_path):
    models = started(repository)
    repository.add("more", write(tmp_path / "in.onnx"), LABELS, (2,), "float32")
    models.refresh()
    assert [slot.served.signature.name for slot in models.loaded()] == ["two", "more"]
    repository.root.rename(tmp_path / "away")
    models.refresh()
    assert served(models) == 1
    assert [row["state"] for row in models.index(ready=True)] == ["READY", "READY"]


def test_a_version_that_does_not_end_or_ends_its_process_is_not_served(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "TEST_SECONDS", 1.5)
    models = started(repository)
    repository.add("two", endless(write(tmp_path / "loop.onnx")), LABELS, (2,), "float32")
    models.refresh()
    assert (served(models), models.load_failures) == (1, 1)
    assert "its self-test takes over 1.5 s" in models.index(ready=False)[1]["reason"]
    monkeypatch.setattr(registry, "TEST_MEMORY", 1 << 20)
    add(repository, tmp_path)
    models.refresh()
    assert (served(models), models.load_failures) == (1, 2)


def test_a_test_under_way_is_no_reason_to_stay(repository, tmp_path):
    models = started(repository)
    repository.add("two", endless(write(tmp_path / "loop.onnx")), LABELS, (2,), "float32")
    refreshing = threading.Thread(target=models.refresh)
    refreshing.start()
    while models._trial is None:
        time.sleep(0.01)
    child = models._trial
    models.close()
    refreshing.join(20)
    assert not refreshing.is_alive()
    assert child.returncode == -signal.SIGKILL


def test_an_input_that_does_not_end_is_ended_at_run_time(repository, tmp_path):
    async def main():
        with pytest.raises(Refused, match="was ended"):
            await models.find("two", None).batcher.submit(np.full((1, 2), 7, np.float32))
        assert (await models.find("two", None).batcher.submit(np.zeros((1, 2), np.float32)))["logits"][0, 0] == 0

    repository.add("two", endless(write(tmp_path / "loop.onnx"), 5), LABELS, (2,), "float32")
    models = Models(repository, Limits(run_s=0.3), 1)
    models.start()
    assert served(models) == 2
    asyncio.run(main())


def test_what_is_loaded_is_what_was_tested(repository, tmp_path, monkeypatch):
    models = started(repository)
    add(repository, tmp_path)
    tested = models._tested

    def swapped(name, version):
        found = tested(name, version)
        endless(repository.path(name, version))
        return found

    monkeypatch.setattr(models, "_tested", swapped)
    models.refresh()
    assert served(models) == 1
    assert "has changed since it was tested" in models.index(ready=False)[1]["reason"]


def test_what_is_wrong_with_a_repository_is_said_once(repository, caplog):
    models = started(repository)
    (repository.root / "two" / "config.pbtxt").write_bytes(b"\xff")
    for _ in range(3):
        models.refresh()
    assert caplog.text.count("cannot be read") == 1
