"""Ensemble: what it computes, and what it refuses."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from cloud_app.ensemble.model import HEAD, Ensemble, build, parts
from cloud_app.ensemble.onnx_export import export
from cloud_app.serving.onnx_session import open_session
from emo.config import Model
from emo.data.dataset import Dataset
from emo.errors import ExportError
from emo.models import split_network
from testbed.evaluation import accuracies

torch.set_num_threads(1)

MEAN, STD = np.array([10.0, 20.0], np.float32), np.array([2.0, 4.0], np.float32)
SPEC = Model(name="cnn", width=0.25, norm="batch", input=(1, 8, 8), classes=10)
GREY = np.array([77.8], np.float32), np.array([95.9], np.float32)


def _parts(members=3):
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    return trunk, [nn.Sequential(nn.Flatten(), nn.Linear(4 * 9, 5)) for _ in range(members)]


def _images(n=6):
    return torch.randint(0, 256, (n, 2, 3, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_it_is_the_mean_of_each_pairs_logits_on_normalised_images():
    trunk, overlays = _parts()
    logits, probabilities = Ensemble(trunk, overlays, MEAN, STD, combine="logits")(_images())
    normal = (_images().double() - torch.tensor([10.0, 20.0]).view(2, 1, 1)) / torch.tensor([2.0, 4.0]).view(2, 1, 1)
    expected = sum(overlay(trunk(normal.float())) for overlay in overlays) / 3
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(probabilities, expected.softmax(1))


def test_by_default_it_is_the_mean_of_each_pairs_probabilities():
    trunk, overlays = _parts()
    pairs = [Ensemble(trunk, [overlay], MEAN, STD)(_images())[1] for overlay in overlays]
    logits, probabilities = Ensemble(trunk, overlays, MEAN, STD)(_images())
    torch.testing.assert_close(probabilities, sum(pairs) / 3)
    torch.testing.assert_close(logits.exp(), probabilities)


def test_a_pair_that_never_saw_a_class_is_outvoted_not_obeyed():
    trunk = nn.Identity()
    sure, blind = nn.Linear(2, 2), nn.Linear(2, 2)
    for layer, logits in ((sure, [0.0, 5.0]), (blind, [0.0, -40.0])):  # class 1 was never shown to `blind`
        nn.init.zeros_(layer.weight)
        layer.bias.data = torch.tensor(logits)
    images, one = torch.zeros(1, 2), np.ones(2, np.float32)

    def says(combine):
        return int(Ensemble(trunk, [sure, blind, sure], one, one, "float32", combine)(images)[0].argmax())

    assert says("logits") == 0
    assert says("probabilities") == 1


def test_members_that_work_in_place_do_not_hear_of_each_other(tmp_path):
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(18, 8))
    members = [nn.Sequential(nn.Hardswish(inplace=True), nn.Linear(8, 5)) for _ in range(3)]
    whole, images = Ensemble(trunk, members, MEAN, STD, combine="logits"), _images()
    alone = [Ensemble(trunk, [member], MEAN, STD, combine="logits")(images)[0] for member in members]
    torch.testing.assert_close(whole.member_logits(images), torch.stack(alone))
    path = tmp_path / "m.onnx"
    export(whole, path, (2, 3, 3), list("abcde"), {})
    (logits,) = open_session(path, 1).run(["logits"], {"images": images.numpy()})
    np.testing.assert_allclose(logits, sum(alone).numpy() / 3, atol=1e-4)
    assert "Identity" not in {node.op_type for node in onnx.load(path).graph.node}
    data = Dataset(_images(200).numpy(), np.arange(200) % 5, tuple("abcde"), MEAN, STD)
    found = accuracies(trunk, dict(enumerate(members)), [0], data)
    assert [accuracies(trunk, {0: each}, [0], data)[0] for each in members] == [found[n] for n in range(3)]


@pytest.mark.parametrize("combine", ["probabilities", "logits"])
def test_shares_weigh_the_members_whatever_their_scale(combine):
    trunk, overlays = _parts()
    pairs = [Ensemble(trunk, [overlay], MEAN, STD, combine="logits")(_images()) for overlay in overlays]
    logits, probabilities = Ensemble(trunk, overlays, MEAN, STD, combine=combine, shares=[5, 3, 2])(_images())
    kind = 1 if combine == "probabilities" else 0
    expected = sum(share * pair[kind] for share, pair in zip((0.5, 0.3, 0.2), pairs, strict=True))
    torch.testing.assert_close(probabilities if kind else logits, expected)


@pytest.mark.parametrize("shares", [[1, 1], [1, 1, 0], [1, 1, -1], [1, 1, np.inf], [1, 1, np.nan], []])
def test_it_refuses_shares_that_are_none(shares):
    trunk, overlays = _parts()
    with pytest.raises(ExportError, match="3 members need one each"):
        Ensemble(trunk, overlays, MEAN, STD, shares=shares)


def test_the_trunk_runs_once():
    trunk, overlays = _parts()
    calls = []
    trunk.register_forward_hook(lambda *_: calls.append(1))
    Ensemble(trunk, overlays, MEAN, STD)(_images())
    assert calls == [1]


def test_a_sample_does_not_depend_on_its_batch():
    trunk, overlays = _parts()
    trunk.train()  # batch norm would take the batch's own statistics
    module = Ensemble(trunk, overlays, MEAN, STD)
    torch.testing.assert_close(module(_images())[0][:1], module(_images()[:1])[0])


def test_float_and_uint8_images_mean_the_same():
    trunk, overlays = _parts()
    a = Ensemble(trunk, overlays, MEAN, STD, "uint8")(_images())
    b = Ensemble(trunk, overlays, MEAN, STD, "float32")(_images().float())
    assert torch.equal(a[0], b[0])


@pytest.mark.parametrize(
    ("overlays", "mean", "std", "dtype", "why"),
    [
        (0, MEAN, STD, "uint8", "none has arrived"),
        (1, MEAN, np.zeros(2, np.float32), "uint8", "above zero"),
        (1, np.array([np.nan, 1], np.float32), STD, "uint8", "finite"),
        (1, MEAN[:1], STD, "uint8", "one value a channel"),
        (1, MEAN, STD, "int16", "int16"),
    ],
)
def test_it_refuses(overlays, mean, std, dtype, why):
    trunk, members = _parts(overlays)
    with pytest.raises(ExportError, match=why):
        Ensemble(trunk, members, mean, std, dtype)


def _sent(spec=SPEC, seed=0):
    return split_network.weights(split_network.overlay(spec, seed))


def _global(spec=SPEC, seed=3):
    return split_network.weights(split_network.network(spec, seed))


def _digits(n=4):
    return torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_build_gives_the_networks_that_the_weights_came_from():
    network, overlay = split_network.network(SPEC, 3), split_network.overlay(SPEC, 4)
    module = build(SPEC, parts(split_network.weights(network), {"e": split_network.weights(overlay)}), *GREY)
    assert torch.equal(module(_digits())[0], Ensemble(network.trunk, [overlay], *GREY)(_digits())[0])


def test_build_does_not_depend_on_the_order_of_arrival():
    sent = {name: _sent(seed=i) for i, name in enumerate("cab")}
    one = build(SPEC, parts(_global(), sent), *GREY)(_digits())
    other = build(SPEC, parts(_global(), dict(sorted(sent.items()))), *GREY)(_digits())
    assert torch.equal(one[0], other[0])


def test_the_head_of_the_global_model_is_no_member_unless_it_is_named():
    found, network = parts(_global(), {"e": _sent(seed=4)}), split_network.network(SPEC, 3)
    overlay = split_network.overlay(SPEC, 4)
    assert len(build(SPEC, found, *GREY).members) == 1
    shares = {"overlay-e": 3.0, HEAD: 1.0}
    module = build(SPEC, found, *GREY, combine="logits", shares=shares)
    each = module.member_logits(_digits())
    inputs = (_digits().float() - float(GREY[0][0])) / float(GREY[1][0])
    with split_network.inference(network), split_network.inference(overlay):
        expected = torch.stack([overlay(network.trunk(inputs)), network(inputs)])
    torch.testing.assert_close(each, expected)
    torch.testing.assert_close(module(_digits())[0], 0.75 * expected[0] + 0.25 * expected[1])


def test_who_has_no_share_is_not_even_looked_at():
    found = parts(_global(), {"good": _sent(), "bad": _with_nan(_sent())})
    module = build(SPEC, found, *GREY, shares={"overlay-good": 1.0})
    assert torch.isfinite(module(_digits())[0]).all()


def test_parts_go_by_trunk_head_and_edge():
    found = parts(_global(), {"b": _sent(seed=1), "a": _sent(seed=2)})
    assert list(found) == ["trunk", "head", "overlay-a", "overlay-b"]
    assert {f"trunk.{name}" for name in found["trunk"]} | {f"head.{name}" for name in found["head"]} == set(_global())


def _without(arrays):
    return {name: array for name, array in arrays.items() if name != next(iter(arrays))}


def _with_nan(arrays):
    name = next(name for name, array in arrays.items() if array.dtype == np.float32)
    return {**arrays, name: np.full_like(arrays[name], np.nan)}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (_sent(SPEC.model_copy(update={"width": 0.5})), r"expected float32\("),  # another split
        (_sent(SPEC.model_copy(update={"classes": 7})), r"float32\(7,.*expected float32\(10,"),
        (_without(_sent()), "is missing"),
        ({**_sent(), "extra": np.zeros(1, np.float32)}, "extra is not known here"),
        (_with_nan(_sent()), "NaN or infinity"),
        ({name: array.astype(np.float64) for name, array in _sent().items()}, "float64"),
    ],
    ids=["split", "classes", "missing", "extra", "nan", "dtype"],
)
def test_build_names_the_edge_and_the_difference(bad, why):
    with pytest.raises(ExportError, match=rf"edge east.*{why}"):
        build(SPEC, parts(_global(), {"west": _sent(), "east": bad}), *GREY)


@pytest.mark.parametrize(
    ("found", "shares", "why"),
    [
        ({}, None, "this run has no trunk"),
        (parts(_global(), {}), None, "none has arrived"),
        (parts(_global(), {"west": _sent()}), {"overlay-east": 1.0}, "no overlay-east; its parts are trunk"),
        (
            parts({"trunk.x": np.zeros(1)}, {"west": _sent()}),
            None,
            "the trunk of the global model: .*is missing",
        ),
    ],
)
def test_build_says_what_is_missing(found, shares, why):
    with pytest.raises(ExportError, match=why):
        build(SPEC, found, *GREY, shares=shares)


def test_a_global_model_of_other_parts_is_refused():
    with pytest.raises(ExportError, match="neither to its trunk nor to its head"):
        parts({"trunk.w": np.zeros(1), "tail.w": np.zeros(1)}, {})


def test_build_refuses_a_mean_of_other_channels():
    with pytest.raises(ExportError, match="one a channel"):
        build(SPEC, parts(_global(), {"west": _sent()}), MEAN, STD)
