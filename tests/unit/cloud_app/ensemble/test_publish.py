"""From a finished run to a version in the repository: who is a member, what is measured, what the file says."""

import hashlib
import json
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from ensembles import DATA, RECORD, SPEC, ended, trained

from cloud_app.ensemble import int8, model, run_archive
from cloud_app.ensemble.member_choice import Choice
from cloud_app.ensemble.publish import from_folder, publish
from cloud_app.run import finish, run
from cloud_app.serving.onnx_session import open_session
from cloud_app.serving.repository import Repository
from emo import cli
from emo.config import CloudConfig, Data, Model
from emo.data import heldout, registry
from emo.data.dataset import Dataset
from emo.errors import DataError, ExportError

torch.set_num_threads(1)

ALWAYS = Choice(at_least="none")


@pytest.fixture(scope="module")
def parts():
    return trained()


def _right(path):
    """Share of the test images that the file itself gets right."""
    _, test = registry.load(Data())
    (logits,) = open_session(path, 1).run(["logits"], {"images": test.images})
    return float((logits.argmax(1) == test.labels).mean())


def _says(path):
    return open_session(path, 1).get_modelmeta().custom_metadata_map


@pytest.fixture(scope="module")
def plain(parts, tmp_path_factory):
    models_dir = tmp_path_factory.mktemp("plain")
    return publish(RECORD, parts, ALWAYS, models_dir, "digits"), Repository(models_dir)


@pytest.fixture(scope="module")
def chosen(parts, tmp_path_factory):
    models_dir = tmp_path_factory.mktemp("chosen")
    return publish(RECORD, parts, Choice(head=True, fit="both", at_least="none"), models_dir, "digits")


def test_by_default_it_is_all_overlays_with_equal_shares(plain):
    found, repository = plain
    assert (found["members"], found["shares"]) == (["overlay-bad", "overlay-good"], [0.5, 0.5])
    assert repository.versions("digits") == [found["version"]] == [1]
    assert found["onnx"] == str(repository.path("digits", 1))
    assert (found["precision"], "heldout" in found) == ("fp32", False)
    assert found["accuracy"]["served"] == found["accuracy"]["bagged"]


def test_every_accuracy_is_of_the_test_set(plain, parts):
    accuracy = plain[0]["accuracy"]
    _, test = registry.load(Data())
    for shares, combine, figure in (
        ({"head": 1.0}, "logits", accuracy["fl"]),
        ({"overlay-bad": 1.0}, "logits", accuracy["boosted"][0]),
        ({"overlay-good": 1.0}, "logits", accuracy["boosted"][1]),
        (None, "probabilities", accuracy["bagged"]),
        (None, "logits", accuracy["bagged_logits"]),
    ):
        module = model.build(SPEC, parts, test.mean, test.std, combine=combine, shares=shares)
        answers = module(torch.from_numpy(test.images))[0].argmax(1).numpy()
        assert figure == pytest.approx(float((answers == test.labels).mean()))
    assert accuracy["boosted"][0] < 0.2
    assert accuracy["boosted"][1] > 0.8


def test_the_file_says_all_that_is_known(plain):
    found, _ = plain
    says = _says(plain[1].path("digits", 1))
    _, test = registry.load(Data())
    assert json.loads(says["labels"]) == list(test.classes)
    assert json.loads(says["mean"]) == pytest.approx(test.mean.tolist())
    assert json.loads(says["members"]) == ["bad", "good"]
    assert json.loads(says["answers"]) == ["FL model", "pair bad", "pair good"]
    assert "member_probabilities" not in (plain[1].root / "digits" / "config.pbtxt").read_text()
    assert json.loads(says["shares"]) == [0.5, 0.5]
    assert (says["run"], says["rounds"], says["combine"], says["fit"]) == ("r", "2", "probabilities", "none")
    assert Model.model_validate_json(says["model"]) == SPEC
    assert set(json.loads(says["versions"])) == {"emo", "torch", "onnx", "python"}
    assert (says["trained_with"], says["data"], says["precision"]) == ("0.1.0", "digits", "fp32")
    version = json.loads(says["data_version"])
    assert version == {
        "seed": 0,
        "heldout": 0.2,
        "test_samples": len(test.labels),
        "test_sha256": hashlib.sha256(test.images.tobytes() + test.labels.tobytes()).hexdigest(),
    }
    assert float(says["accuracy"]) == pytest.approx(_right(plain[1].path("digits", 1)), abs=1e-4)
    assert float(says["accuracy"]) == pytest.approx(found["accuracy"]["served"], abs=1e-4)


def test_held_out_data_leaves_the_bad_overlay_out(chosen, plain):
    assert "overlay-bad" not in chosen["members"]
    assert chosen["heldout"]["fitted"] > chosen["heldout"]["equal"]
    assert chosen["heldout"]["samples"] == len(heldout.kept(DATA, SPEC).labels)
    assert chosen["accuracy"]["served"] > plain[0]["accuracy"]["served"] + 0.1
    assert sum(chosen["shares"]) == pytest.approx(1, abs=1e-3)


def test_what_was_chosen_is_what_the_file_does(chosen):
    says = _says(path := Path(chosen["onnx"]))
    assert json.loads(says["members"]) == [name.removeprefix("overlay-") for name in chosen["members"]]
    assert json.loads(says["shares"]) == pytest.approx(chosen["shares"], abs=1e-4)
    assert says["fit"] == "both"
    assert _right(path) == pytest.approx(chosen["accuracy"]["served"])


def test_the_choice_does_not_depend_on_the_test_set(chosen, parts, tmp_path, monkeypatch, untraced):
    _, test = registry.load(Data())
    other = Dataset(test.images, (test.labels + 3) % 10, test.classes, test.mean, test.std)
    monkeypatch.setattr(registry, "testing", lambda *_: other)
    found = publish(RECORD, parts, Choice(head=True, fit="both", at_least="none"), tmp_path, "digits")
    assert (found["members"], found["shares"]) == (chosen["members"], chosen["shares"])
    assert found["heldout"] == chosen["heldout"]
    assert found["accuracy"]["served"] < 0.2


def test_the_head_alone_is_the_fl_model(parts, tmp_path, untraced):
    found = publish(RECORD, parts, Choice(head=True, without=("bad", "good")), tmp_path, "digits")
    assert found["members"] == ["head"]
    assert found["accuracy"]["served"] == found["accuracy"]["fl"]
    assert found["accuracy"]["bagged"] is None


@pytest.mark.parametrize(
    ("record", "choice", "why"),
    [
        (RECORD.model_copy(update={"data": Data()}), Choice(fit="weights"), "no held-out data"),
        (RECORD, Choice(without=("bat",)), "no overlay of edge bat; did you mean 'bad'"),
        (RECORD, Choice(without=("bad", "good"), at_least="none"), "no edge sent an overlay"),
        (RECORD.model_copy(update={"model": SPEC.model_copy(update={"width": 0.5})}), Choice(), "`model:`"),
    ],
)
def test_what_cannot_be_published_leaves_the_repository_alone(parts, tmp_path, record, choice, why):
    with pytest.raises(ExportError, match=why):
        publish(record, parts, choice, tmp_path, "digits")
    assert not list(tmp_path.iterdir())


def test_without_any_overlay_the_fl_model_is_what_is_left(parts, tmp_path, untraced):
    found = publish(RECORD, parts, Choice(without=("bad", "good")), tmp_path, "digits")
    assert (found["members"], found["instead"]) == (["head"], "no member is left")


def test_a_head_that_was_not_kept_is_not_left_out_in_silence(parts, tmp_path):
    kept = {name: part for name, part in parts.items() if name != "head"}
    with pytest.raises(ExportError, match="not kept the FL model's head, only trunk, overlay-bad"):
        publish(RECORD, kept, Choice(head=True), tmp_path, "digits")


def test_other_data_is_refused(parts, tmp_path):
    record = RECORD.model_copy(update={"model": SPEC.model_copy(update={"input": (3, 8, 8)})})
    with pytest.raises(DataError, match="the model takes"):
        publish(record, parts, Choice(), tmp_path, "digits")


def test_held_out_data_is_training_data_of_every_class_and_the_rest_is_disjoint():
    train, test = registry.load(Data())
    kept = heldout.kept(DATA, SPEC)
    seen = {image.tobytes() for image in kept.images}
    assert seen <= {image.tobytes() for image in train.images}
    assert not seen & {image.tobytes() for image in test.images}
    counts = np.bincount(kept.labels, minlength=10)
    np.testing.assert_allclose(counts, 0.2 * np.bincount(train.labels), atol=0.51)


def test_int8_that_passes_both_gates_is_what_is_served(parts, tmp_path, monkeypatch):
    times = iter((2.0, 1.0))
    monkeypatch.setattr(int8, "_latency", lambda *_: next(times))
    monkeypatch.setattr(int8, "LOSS", 0.1)  # the few images here tell no less
    found = publish(RECORD, parts, Choice(int8=True, without=("bad",), at_least="none"), tmp_path, "digits")
    path = Repository(tmp_path).path("digits", 1)
    assert [found["precision"], _says(path)["precision"]] == ["int8", "int8"]
    assert _right(path) == pytest.approx(found["accuracy"]["served"])
    assert float(_says(path)["accuracy"]) == pytest.approx(found["accuracy"]["served"], abs=1e-4)
    assert json.loads(_says(path)["members"]) == ["good"]
    assert found["bytes"] == path.stat().st_size
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(path).graph.node}
    assert {each.domain for each in onnx.load(path).opset_import} == {""}


def test_a_run_of_the_cloud_can_be_exported_again(parts, tmp_path, capsys):
    config = CloudConfig.model_validate(
        {
            "model": SPEC.model_dump(),
            "data": {"heldout": 0.2},
            "overlays": {"edges": ["good"], "combine": "logits"},
            "export": {"models": tmp_path / "models"},
            "state_dir": tmp_path,
        }
    )
    weights = {f"{part}.{name}": array for part in ("trunk", "head") for name, array in parts[part].items()}
    overlays = {"good": parts["overlay-good"]}
    _, test = registry.load(config.data)
    result = finish(config, ended(config, "r", weights, overlays), test, resumed=False)
    assert (result["version"], result["edges"]) == (1, {"good": {"steps": 7, "attempted": 5, "sent": 3}})
    again = from_folder(tmp_path, tmp_path / "models", "emo", Choice())
    assert again["version"] == 2
    assert again["accuracy"] == result["accuracy"]
    first, second = (Repository(tmp_path / "models").path("emo", version) for version in (1, 2))
    assert first.read_bytes() == second.read_bytes()
    assert _says(second)["combine"] == "logits"
    # A process that was killed after this is followed by one that finishes the same run.
    followed = finish(config, ended(config, "r", weights, overlays), test, resumed=True)
    assert (followed["version"], followed["accuracy"]) == (2, result["accuracy"])
    assert Repository(tmp_path / "models").versions("emo") == [1, 2]
    assert finish(config, ended(config, "another", weights, overlays), test, resumed=True)["version"] == 3


def test_the_command_exports_what_it_is_asked_for(parts, tmp_path, capsys, untraced):
    run_archive.write(tmp_path, RECORD, parts)
    command = ["export", "--run", str(tmp_path), "--out", str(tmp_path / "other"), "--name", "fl"]
    assert cli.main([*command, "--head", "--without", "good", "bad", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["members"] == ["head"]
    assert cli.main([*command, "--without", "west"]) == 2
    assert "no overlay of edge west" in capsys.readouterr().err


def test_fitting_on_nothing_is_refused_before_the_run(tmp_path):
    settings = {"model": SPEC.model_dump(), "overlays": {"fit": "weights"}, "state_dir": tmp_path / "state"}
    config = CloudConfig.model_validate({**settings, "export": {"models": tmp_path / "models"}})
    with pytest.raises(ExportError, match=r"no held-out data.* set data\.heldout"):
        run(config, threading.Event())


def test_a_full_disk_does_not_cost_the_model(parts, tmp_path, monkeypatch, caplog, untraced):
    config = CloudConfig.model_validate(
        {
            "model": SPEC.model_dump(),
            "overlays": {"edges": ["good"]},
            "export": {"models": tmp_path / "models"},
            "state_dir": tmp_path,
        }
    )

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    write_weights = run_archive.write_weights
    monkeypatch.setattr(run_archive, "write_weights", full)
    weights = {f"{part}.{name}": array for part in ("trunk", "head") for name, array in parts[part].items()}
    overlays = {"good": parts["overlay-good"]}
    _, test = registry.load(config.data)
    assert finish(config, ended(config, "r", weights, overlays), test, resumed=False)["version"] == 1
    assert "`emo export` will not find this run" in caplog.text
    caplog.clear()
    # There is room again while it exports; but for the sample image, which is not worth a run.
    monkeypatch.setattr("cloud_app.run.Image.Image.save", full)

    def full_once(*_args):
        monkeypatch.setattr(run_archive, "write_weights", write_weights)
        full()

    monkeypatch.setattr(run_archive, "write_weights", full_once)
    assert finish(config, ended(config, "later", weights, overlays), test, resumed=False)["sample"] is None
    assert "`emo export`" not in caplog.text
    assert run_archive.read(tmp_path)[0].run == "later"
