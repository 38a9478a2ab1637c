"""Eight bits where that is faster and as good, and nowhere else."""

import numpy as np
import pytest

from cloud_app.ensemble import int8
from emo.config import Data
from emo.data import registry
from emo.errors import ExportError


@pytest.mark.parametrize(
    ("right", "times", "taken"),
    [
        ((0.9, 0.896), (2.0, 1.0), True),
        ((0.9, 0.894), (2.0, 1.0), False),
        ((0.9, 0.9), (2.0, 1.9), False),
        ((0.9, 0.9), (1.0, 2.0), False),
    ],
)
def test_int8_is_taken_only_where_it_is_faster_and_as_good(tmp_path, monkeypatch, right, times, taken):
    rights, seconds = iter(right), iter(times)
    monkeypatch.setattr(int8, "_write", lambda *_: None)
    monkeypatch.setattr(int8, "accuracy", lambda *_: next(rights))
    monkeypatch.setattr(int8, "_latency", lambda *_: next(seconds))
    train, _ = registry.load(Data())
    assert (int8.quantise(tmp_path / "m.onnx", train, train, tmp_path / "to.onnx") is not None) == taken


def test_int8_needs_images_to_judge_by(tmp_path):
    train, _ = registry.load(Data())
    with pytest.raises(ExportError, match="199 images to judge accuracy by, at least 200"):
        int8.quantise(tmp_path / "m", train, train.of(np.arange(199)), tmp_path / "to")


def test_a_model_that_onnxruntime_cannot_quantise_is_said(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no model")
    train, _ = registry.load(Data())
    with pytest.raises(ExportError, match="cannot quantise this model"):
        int8.quantise(tmp_path / "m.onnx", train, train, tmp_path / "to.onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]
