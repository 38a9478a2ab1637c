"""The file tells what each member answers for itself, and the FL model, and what it told before stays as it was."""

import json

import numpy as np
import onnx
import pytest
import torch
from ensembles import RECORD, SPEC

from cloud_app.ensemble import int8
from cloud_app.ensemble import publish as publishing
from cloud_app.ensemble.member_choice import Choice
from cloud_app.ensemble.model import HEAD, build, parts
from cloud_app.ensemble.onnx_export import export
from cloud_app.serving import known_answer
from cloud_app.serving.model import MEMBERS, Served
from emo.data import registry
from emo.errors import ExportError
from emo.models import split_network

torch.set_num_threads(1)

LABELS = tuple("0123456789")
SCALE = np.array([77.8], np.float32), np.array([95.9], np.float32)
ALWAYS = Choice(at_least="none")


@pytest.fixture(scope="module")
def found():
    sent = {edge: split_network.weights(split_network.overlay(SPEC, at)) for at, edge in enumerate(("head", "west"))}
    return parts(split_network.weights(split_network.network(SPEC, 7)), sent)


@pytest.fixture(scope="module")
def exported(found, tmp_path_factory):
    """Without the members' answers, and with them: the modules and their files."""
    folder, made = tmp_path_factory.mktemp("export"), []
    for answers, opset in ((False, 20), (True, 18)):
        module, path = build(SPEC, found, *SCALE, answers=answers), folder / f"{answers}.onnx"
        export(module, path, SPEC.input, LABELS, {}, opset)
        made.append((module, path))
    return made


def _images(count):
    return np.random.default_rng(count).integers(0, 256, (count, *SPEC.input), np.uint8)


def _open(path):
    return Served.open(path, "m", 1, LABELS, 1)


def _changed(path, to, **metadata):
    model = onnx.load(path)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, to)
    return _open(to)


@pytest.mark.parametrize(
    ("shares", "names"),
    [
        ({"overlay-head": 3, "overlay-west": 1}, ("FL model", "pair head", "pair west")),
        ({"overlay-west": 1, HEAD: 1}, ("pair west", "FL model")),
        ({HEAD: 1}, ("FL model",)),
    ],
)
def test_each_member_and_the_fl_model_answer_for_themselves(found, shares, names):
    whole = build(SPEC, found, *SCALE, shares=shares, answers=True)
    part = {"FL model": HEAD, "pair head": "overlay-head", "pair west": "overlay-west"}
    images = torch.from_numpy(_images(3))
    alone = [build(SPEC, found, *SCALE, shares={part[name]: 1})(images)[1] for name in names]
    logits, probabilities, own = whole(images)
    assert whole.answers == names
    torch.testing.assert_close(own, torch.stack(alone, 1))
    plain = build(SPEC, found, *SCALE, shares=shares)(images)
    assert torch.equal(logits, plain[0])
    assert torch.equal(probabilities, plain[1])


@pytest.mark.parametrize("count", [1, 2, 33])
def test_the_file_gives_what_torch_gives(exported, count):
    module, path = exported[1]
    served, images = _open(path), _images(count)
    assert served.answers == ("FL model", "pair head", "pair west")
    results = served.run_all(images)
    for name, expected in zip(("logits", "probabilities", MEMBERS), module(torch.from_numpy(images)), strict=True):
        np.testing.assert_allclose(results[name], expected, atol=1e-4 if name == "logits" else 1e-5)


def test_what_the_file_told_before_stays_as_it_was_to_the_bit(exported):
    old, new = (_open(path) for _, path in exported)
    assert (old.answers, old.signature.outputs) == ((), new.signature.outputs)
    assert (old.config, old.metadata["outputs"]) == (new.config, new.metadata["outputs"])
    assert json.loads(new.metadata["parameters"]["answers"]) == list(new.answers)
    for results in (new.run(_images(5)), new.run_all(_images(5))):
        for name, values in old.run(_images(5)).items():
            np.testing.assert_array_equal(results[name], values)
    assert list(new.run(_images(5))) == list(old.run_all(_images(5))) == ["logits", "probabilities"]
    request = {"inputs": [{"name": "images", "shape": [1, 1, 8, 8], "datatype": "UINT8", "data": [7] * 64}]}
    assert old.infer(json.dumps(request).encode()) == new.infer(json.dumps(request).encode())


def test_an_endpoint_that_knows_of_no_members_passes_the_self_test_too(exported, tmp_path):
    path = exported[1][1]
    stored = known_answer.make(path)
    known_answer.check(_open(path), stored)
    old = _changed(path, tmp_path / "m.onnx", answers="")  # the output is one as any other then
    assert list(old.signature.outputs) == ["logits", "probabilities", MEMBERS]
    known_answer.check(old, stored)


@pytest.mark.parametrize("said", ["[", "{}", "[]", "[1, 2, 3]", '["a", "b"]', "null"])
def test_names_that_do_not_fit_make_no_members(exported, tmp_path, said):
    served = _changed(exported[1][1], tmp_path / "m.onnx", answers=said)
    assert (served.answers, served.signature.outputs[MEMBERS]) == ((), (3, 10))


@pytest.mark.parametrize(
    ("choice", "tried"),
    [
        (ALWAYS, [("FL model", "pair head", "pair west"), ("pair head", "pair west")]),
        (Choice(at_least="none", head=True), [("pair head", "pair west", "FL model")]),
        (Choice(at_least="none", answers=False), [()]),
    ],
)
def test_a_head_that_is_no_member_never_keeps_the_ensemble_from_being_served(
    found, tmp_path, monkeypatch, caplog, choice, tried
):
    seen = []

    def refuses(module, *_):
        seen.append(module.answers)
        if module.beside is not None:
            raise ExportError("torch cannot export this network to ONNX")
        return 0.0

    monkeypatch.setattr(publishing, "export", refuses)
    candidates = publishing.collect(RECORD, found, choice, registry.testing(RECORD.data, SPEC))
    members = publishing.choose_members(candidates, choice)
    assert publishing._export(candidates, members, tmp_path, {}, choice) == 0
    assert seen == tried
    assert ("without the FL model's own answers: torch cannot" in caplog.text) == (len(tried) == 2)
    monkeypatch.setattr(publishing.Votes, "no_numbers", lambda _: [HEAD])
    publishing._export(candidates, members, tmp_path, {}, choice)
    assert seen[len(tried) :] == tried[-1:]


def test_in_eight_bits_members_answer_nearly_the_same(exported, tmp_path):
    images = registry.testing(RECORD.data, SPEC).images
    int8._write(exported[1][1], images[:64], tmp_path / "int8.onnx")
    whole, eight = _open(exported[1][1]), _open(tmp_path / "int8.onnx")
    assert eight.answers == whole.answers
    np.testing.assert_allclose(eight.run_all(images[:50])[MEMBERS], whole.run_all(images[:50])[MEMBERS], atol=0.1)
