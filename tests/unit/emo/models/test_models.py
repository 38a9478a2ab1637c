"""Split networks: the paper's sizes, seeds, and sentences for parts that do not fit."""

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

from emo.config import Model
from emo.errors import ModelError
from emo.models import split_network
from emo.models.layers import Parts

CIFAR100 = {"input": (3, 32, 32), "classes": 100}
SMALL = Model(name="cnn", norm="batch")


pytestmark = pytest.mark.usefixtures("one_thread")


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("name", "expected"), [("mobilenet6", 25_508), ("mobilenet12", 816_676)])
def test_parameter_counts_of_the_papers_mobilenets(name, expected):
    spec = Model(name=name, norm="batch", **CIFAR100)
    assert count(split_network.network(spec, seed=0)) == expected


@pytest.mark.parametrize(
    ("small", "large", "split"),
    [("mobilenet6", "mobilenet12", (128, 16, 16)), ("vgg6", "vgg11", (256, 4, 4))],
)
def test_the_overlay_makes_the_small_model_the_large_one(small, large, split):
    device, full = (Model(name=name, **CIFAR100) for name in (small, large))
    assert split_network.split_shape(device) == split_network.split_shape(full) == split
    trunk = split_network.network(device, seed=0).trunk
    assert count(trunk) + count(split_network.overlay(device, seed=0)) == count(split_network.network(full, seed=0))


def layers(module, kind):
    return [m for m in module.modules() if isinstance(m, kind)]


@pytest.mark.parametrize(
    ("name", "trunk", "head", "overlay"),
    [
        ("vgg6", (4, 0), (0, 2), (4, 3)),
        ("mobilenet6", (5, 0), (0, 1), (6, 1)),
        ("cnn", (2, 0), (0, 1), (3, 2)),
    ],
)
def test_layers_of_table_1(name, trunk, head, overlay):
    spec = Model(name=name, input=(3, 32, 32))
    net = split_network.network(spec, seed=0)
    for part, expected in (
        (net.trunk, trunk),
        (net.head, head),
        (split_network.overlay(spec, seed=0), overlay),
    ):
        assert (len(layers(part, nn.Conv2d)), len(layers(part, nn.Linear))) == expected


@pytest.mark.parametrize("width", [0.05, 0.25, 0.3, 1.0])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("name", ["vgg6", "mobilenet6", "cnn"])
def test_every_width_and_norm_fits_together(name, norm, width):
    spec = Model(name=name, norm=norm, width=width, input=(3, 32, 32), classes=7)
    net, overlay = split_network.network(spec, seed=0), split_network.overlay(spec, seed=0)
    inputs = torch.randn(3, 3, 32, 32)
    split = net.trunk(inputs)
    assert split.shape[1:] == split_network.split_shape(spec)
    assert net(inputs).shape == overlay(split).shape == (3, 7)
    convs = layers(net, nn.Conv2d) + layers(overlay, nn.Conv2d)
    assert all(conv.out_channels % 8 == 0 for conv in convs)
    assert all((conv.bias is not None) == (norm == "none") for conv in convs)
    norms = layers(net, nn.BatchNorm2d if norm == "batch" else nn.GroupNorm)
    assert bool(norms) == (norm != "none")


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 5, 7), (3, 8, 8)])
def test_cnn_takes_any_image_from_4x4(shape):
    spec = Model(name="cnn", input=shape)
    assert split_network.network(spec, seed=0)(torch.zeros(1, *shape)).shape == (1, 10)
    split_network.overlay(spec, seed=0)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_same_seed_same_bits_and_the_global_generator_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, first_overlay = split_network.network(SMALL, seed=7), split_network.overlay(SMALL, seed=7)
    assert torch.equal(torch.rand(3), expected)
    again, again_overlay = split_network.network(SMALL, seed=7), split_network.overlay(SMALL, seed=7)
    assert same(split_network.weights(first), split_network.weights(again))
    assert same(split_network.weights(first_overlay), split_network.weights(again_overlay))
    assert not same(split_network.weights(first), split_network.weights(split_network.network(SMALL, seed=8)))
    assert first.training
    assert first_overlay.training


def test_weights_travel_with_buffers_and_are_copies():
    net = split_network.network(SMALL, seed=0)
    net(torch.randn(4, 1, 8, 8))
    arrays = split_network.weights(net)
    assert arrays["trunk.1.num_batches_tracked"] == 1
    other = split_network.network(SMALL, seed=1)
    for array in arrays.values():
        array.flags.writeable = False  # as they come off a wire
    split_network.load(other, arrays)
    assert same(split_network.weights(other), arrays)
    with torch.no_grad():
        next(net.parameters()).fill_(9)
    assert not (arrays["trunk.0.weight"] == 9).any()


def test_load_names_what_differs_and_changes_nothing():
    net = split_network.network(SMALL, seed=0)
    before = split_network.weights(net)
    wrong = {k: np.zeros_like(v) for k, v in before.items()}
    wrong["trunk.0.weight"] = wrong["trunk.0.weight"][:1]
    wrong["head.1.bias"] = wrong["head.1.bias"].astype(np.float64)
    wrong["extra"] = np.zeros(3, np.float32)
    with pytest.raises(ModelError, match=r"trunk\.0\.weight is float32\(1, 1, 3, 3\), expected float32\(16") as error:
        split_network.load(net, wrong)
    assert "head.1.bias" in str(error.value)
    assert "extra is not known" in str(error.value)
    del wrong["trunk.0.weight"]
    with pytest.raises(ModelError, match=r"trunk\.0\.weight is missing"):
        split_network.load(net, wrong)
    assert same(split_network.weights(net), before)


def test_weights_refuse_what_numpy_cannot_hold():
    with pytest.raises(ModelError, match=r"weight: a torch\.bfloat16"):
        split_network.weights(nn.Linear(2, 2).to(torch.bfloat16))


def test_inference_restores_each_mode():
    net = split_network.network(SMALL, seed=0)
    net.trunk[1].eval()  # somebody froze one norm
    before = [m.training for m in net.modules()]
    with contextlib.suppress(ZeroDivisionError), split_network.inference(net):
        assert not any(m.training for m in net.modules())
        assert not torch.is_grad_enabled()
        raise ZeroDivisionError
    assert [m.training for m in net.modules()] == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (Model(name="vgg12"), "did you mean 'vgg11'"),
        (Model(name="transformer9000"), "known here: cnn, mobilenet12"),
        (Model(name="no.such.module:net"), "no.such.module does not import"),
        (Model(name="emo.models.vgg:nothing"), "no function 'nothing'"),
        (Model(name="vgg6", input=(3, 4, 4)), "at least 8x8; found 4x4"),
        (Model(name="cnn", input=(64,)), "takes images"),
    ],
)
def test_bad_names_and_inputs(spec, sentence):
    with pytest.raises(ModelError, match=sentence):
        split_network.network(spec, seed=0)


def test_an_overlay_needs_more_of_the_input_than_the_trunk():
    spec = Model(name="vgg6", input=(3, 16, 16))
    split_network.network(spec, seed=0)
    with pytest.raises(ModelError, match="at least 32x32"):
        split_network.overlay(spec, seed=0)


# Users' own networks: this very module is on sys.path.


def own(spec):
    return Parts(lambda: nn.Linear(6, 5), lambda: nn.Linear(5, spec.classes), lambda: nn.Linear(5, spec.classes))


def not_parts(spec):
    return nn.Linear(6, 5)


def head_too_wide(spec):
    return own(spec)._replace(head=lambda: nn.Linear(5, spec.classes + 1))


def head_does_not_fit(spec):
    return own(spec)._replace(head=lambda: nn.Linear(4, spec.classes))


def overlay_does_not_fit(spec):
    return own(spec)._replace(overlay=lambda: nn.Linear(4, spec.classes))


def trunk_is_no_module(spec):
    return own(spec)._replace(trunk=lambda: 3)


def trunk_flattens(spec):
    return own(spec)._replace(trunk=lambda: nn.Flatten(0))


def mine(name):
    return Model(name=f"{__name__}:{name}", input=(6,), classes=3)


def test_a_users_own_network():
    net = split_network.network(mine("own"), seed=0)
    assert net(torch.zeros(2, 6)).shape == (2, 3)
    assert split_network.split_shape(mine("own")) == (5,)
    assert split_network.overlay(mine("own"), seed=0)(torch.zeros(2, 5)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("not_parts", "must return emo.models.Parts.* returned a Linear"),
        ("head_too_wide", r"its head gives \(4,\).*model.classes = 3"),
        ("head_does_not_fit", r"its head does not take samples of shape \(5,\)"),
        ("trunk_is_no_module", "its trunk is a int"),
        ("trunk_flattens", r"its trunk must give one tensor \(N, ...\)"),
    ],
)
def test_a_users_network_that_does_not_fit(name, sentence):
    with pytest.raises(ModelError, match=sentence):
        split_network.network(mine(name), seed=0)


def test_a_users_overlay_that_does_not_fit():
    split_network.network(mine("overlay_does_not_fit"), seed=0)  # a device never builds the overlay
    with pytest.raises(ModelError, match="its overlay does not take"):
        split_network.overlay(mine("overlay_does_not_fit"), seed=0)
