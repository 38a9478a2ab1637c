"""One ONNX file that gives what torch gives, from the ensemble to the bytes of an answer."""

import json
import logging

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from cloud_app.ensemble import onnx_export as exporting
from cloud_app.ensemble.model import Ensemble, build, parts
from cloud_app.ensemble.onnx_domains import only_used
from cloud_app.ensemble.onnx_export import TOLERANCE, export
from cloud_app.serving.onnx_session import open_session
from emo.config import Model
from emo.errors import ExportError
from emo.models import split_network

torch.set_num_threads(1)

SPEC = Model(name="cnn", width=0.25, norm="batch", input=(1, 8, 8), classes=10)
LABELS = [f"digit {i}" for i in range(10)]
SCALE = np.array([77.8], np.float32), np.array([95.9], np.float32)


class Noisy(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs) + torch.rand_like(inputs[:, :2])


class Centred(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs - inputs.mean(0))


class Squeezed(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs).squeeze()


class Frozen(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs) + torch.full((len(inputs), 1), 0.5)


class Branching(nn.Linear):
    def forward(self, inputs):
        if float(self.bias.sum()) > 0:  # a decision that no graph can hold
            return super().forward(inputs)
        return -super().forward(inputs)


def _small(head, dtype="uint8"):
    torch.manual_seed(0)
    return Ensemble(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), [head], *SCALE, dtype)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    sent = {
        edge: split_network.weights(split_network.overlay(SPEC, seed)) for seed, edge in enumerate(("east", "west"))
    }
    found = parts(split_network.weights(split_network.network(SPEC, 7)), sent)
    module = build(SPEC, found, *SCALE, shares={"overlay-east": 0.6, "overlay-west": 0.3, "head": 0.1})
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    assert 0 <= export(module, path, (1, 8, 8), LABELS, {"round": "20", "accuracy": "0.9"}) <= TOLERANCE
    return module, path


def _images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 1, 8, 8), np.uint8)


@pytest.mark.parametrize("batch", [1, 2, 3, 33])
def test_onnxruntime_gives_what_torch_gives_at_any_batch(exported, batch):
    module, path = exported
    logits, probabilities = open_session(path).run(["logits", "probabilities"], {"images": _images(batch, batch)})
    expected = module(torch.from_numpy(_images(batch, batch)))
    np.testing.assert_allclose(logits, expected[0], atol=1e-4)
    np.testing.assert_allclose(probabilities, expected[1], atol=1e-5)
    assert logits.dtype == probabilities.dtype == np.float32


def test_it_is_one_file_and_nothing_is_left_beside_it(exported):
    _, path = exported
    assert [each.name for each in path.parent.iterdir()] == ["model.onnx"]
    model = onnx.load(path, load_external_data=False)
    assert all(each.data_location == onnx.TensorProto.DEFAULT for each in model.graph.initializer)


def test_the_file_says_what_it_is(exported):
    _, path = exported
    meta = open_session(path).get_modelmeta().custom_metadata_map
    assert json.loads(meta["labels"]) == LABELS
    assert json.loads(meta["mean"]) == pytest.approx([77.8])
    assert json.loads(meta["std"]) == pytest.approx([95.9])
    assert set(json.loads(meta["versions"])) == {"emo", "torch", "onnx", "python"}
    assert (meta["round"], meta["accuracy"]) == ("20", "0.9")


def test_the_file_names_no_path_of_this_machine(exported):
    _, path = exported
    content = path.read_bytes()
    assert b".py" not in content
    assert b"stack_trace" not in content


def test_the_exporter_says_nothing(exported, tmp_path, capfd, caplog, recwarn):
    level = logging.getLogger("torch.onnx").level
    export(_small(nn.Linear(3, 2)), tmp_path / "m.onnx", (1, 2, 2), ["a", "b"], {})
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not recwarn.list
    assert logging.getLogger("torch.onnx").level == level


def test_float_images_and_an_opset(tmp_path):
    path = tmp_path / "m.onnx"
    export(_small(nn.Linear(3, 2), "float32"), path, (1, 2, 2), ["a", "b"], {}, 18)
    assert open_session(path).get_inputs()[0].type == "tensor(float)"
    found = onnx.load(path).opset_import
    assert [(each.domain, each.version) for each in found] == [("", 18)]


@pytest.mark.parametrize(
    ("head", "labels", "why"),
    [
        (nn.Linear(3, 2), ["a", "b", "c"], "2 classes, there are 3 labels"),
        (Noisy(3, 2), ["a", "b"], "images beside it.*draw random numbers"),
        (Centred(3, 2), ["a", "b"], "images beside it.*over the whole batch"),
        (
            nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2)),
            ["a", "b"],
            r"not one image alone.*batch norm without running statistics \(members\.0\.0\); set track",
        ),
        (Squeezed(3, 2), ["a", "b"], "not one image alone"),
        (Frozen(3, 2), ["a", "b"], "does not run at batch 1"),
        (
            Branching(3, 2),
            ["a", "b"],
            r"cannot export.*guard on.*test_onnx_export.py, line \d+: if float\(self",
        ),
    ],
)
def test_what_cannot_be_trusted_leaves_the_old_file_alone(tmp_path, head, labels, why):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ExportError, match=why):
        export(_small(head), path, (1, 2, 2), labels, {})
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


def test_a_file_that_answers_otherwise_is_not_kept(tmp_path, monkeypatch):
    trace, other = exporting.trace, _small(nn.Linear(3, 2))
    monkeypatch.setattr(exporting, "trace", lambda _module, *rest: trace(other, *rest))
    module = _small(nn.Linear(3, 2))
    module.members[0].bias[0] += 1e-3
    with pytest.raises(ExportError, match="differs from torch"):
        export(module, tmp_path / "m.onnx", (1, 2, 2), ["a", "b"], {})
    assert not list(tmp_path.iterdir())


def test_an_opset_that_torch_does_not_write_is_said(tmp_path):
    with pytest.raises(ExportError, match=r"as opset \[18\], not as 15"):
        export(_small(nn.Linear(3, 2)), tmp_path / "m.onnx", (1, 2, 2), ["a", "b"], {}, 15)


def test_domains_that_no_node_uses_are_left_out():
    graph = onnx.helper.make_graph([], "g", [], [])
    body = onnx.helper.make_graph([onnx.helper.make_node("Foo", [], [], domain="used")], "b", [], [])
    graph.node.append(onnx.helper.make_node("If", [], [], then_branch=body))
    sets = [onnx.helper.make_opsetid(domain, 1) for domain in ("", "used", "com.microsoft", "ai.onnx.ml")]
    model = onnx.helper.make_model(graph, opset_imports=sets)
    only_used(model)
    assert [each.domain for each in model.opset_import] == ["", "used"]


def test_weights_that_no_file_can_hold_are_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "LARGEST", 50)
    with pytest.raises(ExportError, match=r"weights are .* bytes, one ONNX file holds 50: take fewer members"):
        export(_small(nn.Linear(3, 2)), tmp_path / "m.onnx", (1, 2, 2), ["a", "b"], {})
    assert not list(tmp_path.iterdir())
