"""What is exported is what was measured: the ensemble of a method's weights."""

import numpy as np
import pytest
import torch
from simulated import plan
from torch import nn

from emo.data import registry
from emo.data.batches import tensors
from emo.errors import ExportError
from emo.models import split_network
from testbed import evaluation, node_configs
from testbed.simulation import run as simulate
from testbed.timing import scenario

_, TEST = registry.load(plan().data)


def parts_of(net, **more):
    return {"trunk": split_network.weights(net.trunk), "head": split_network.weights(net.head), **more}


@pytest.mark.parametrize("method", ["fl-small", "fl-large", "sfl-cloud", "sfl-edge"])
def test_one_network_gives_its_own_logits(method):
    net = node_configs.network(plan(method=method, seed=3)).eval()
    ensemble = evaluation.ensemble(plan(method=method), parts_of(net), TEST)
    with torch.inference_mode():
        expected = net(tensors(TEST, slice(0, 50))[0]).softmax(1)
        _, found = ensemble(torch.from_numpy(TEST.images[:50]))
    assert torch.allclose(found, expected, atol=1e-6)


def test_overlays_have_a_vote_each_and_the_small_models_head_has_none():
    asked = plan(method="emo")
    net = node_configs.network(asked).eval()
    overlays = [split_network.overlay(asked.model, seed).eval() for seed in (1, 2)]
    parts = parts_of(net) | {f"overlay-{n}": split_network.weights(each) for n, each in enumerate(overlays, 1)}
    parts["head"] = split_network.weights(split_network.network(asked.model, seed=0).head)
    ensemble = evaluation.ensemble(asked, parts, TEST)
    with torch.inference_mode():
        split = net.trunk(tensors(TEST, slice(0, 50))[0])
        expected = torch.stack([overlay(split).softmax(1) for overlay in overlays]).mean(0)
        _, found = ensemble(torch.from_numpy(TEST.images[:50]))
    assert torch.allclose(found, expected, atol=1e-6)


def test_weights_of_another_network_are_said(tmp_path):
    net = node_configs.network(plan())
    with pytest.raises(ExportError, match="do not fit"):
        evaluation.ensemble(plan(method="fl-large"), parts_of(net), TEST)
    with pytest.raises(ExportError, match="no trunk"):
        evaluation.ensemble(plan(), {"head": {"bias": np.zeros(1)}}, TEST)


class Branching(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs) if float(self.bias.sum()) > 9 else -super().forward(inputs)


def branching(spec):
    overlay = split_network.parts(spec.model_copy(update={"name": "cnn"}))
    return overlay._replace(overlay=lambda: nn.Sequential(nn.Flatten(), Branching(16 * 16, spec.classes)))


def test_what_cannot_be_exported_is_said_before_the_first_round(tmp_path):
    chosen = plan(method="emo")
    odd = chosen.model.model_copy(update={"name": f"{__name__}:branching"})
    for model, path, why in (
        (chosen.model, tmp_path, "name a file"),
        (chosen.model, tmp_path / "no" / "m.onnx", "name a file"),
        (odd, tmp_path / "m.onnx", "torch cannot export"),
    ):
        with pytest.raises(ExportError, match=why):
            simulate.run(chosen.model_copy(update={"model": model}), scenario.load(None), tmp_path / "out", onnx=path)
        assert not (tmp_path / "out").exists()
