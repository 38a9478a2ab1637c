"""Fixtures of several unit tests."""

import onnx
import pytest
import torch

from cloud_app.ensemble import publish as publishing
from cloud_app.serving import known_answer
from edge_app.cache.disk import DiskCache
from emo.security.pki import authority


@pytest.fixture
def one_thread():
    """Same seed, same bits: that holds with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def disk(tmp_path):
    with DiskCache(tmp_path) as cache:
        yield cache


@pytest.fixture
def ca(tmp_path):
    authority.init(tmp_path / "ca", "EMO", 3650, None)
    return tmp_path / "ca"


@pytest.fixture
def untraced(monkeypatch):
    """Exporting takes seconds; for what is decided before it, any file will do that says what it is."""

    def export(_module, path, _shape, _labels, metadata, *_):
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        same = onnx.helper.make_node("Identity", ["x"], ["y"])
        out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
        graph = onnx.helper.make_graph([same], "g", [value], [out])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        onnx.helper.set_model_props(model, metadata)
        path.write_bytes(model.SerializeToString())
        return 0.0

    monkeypatch.setattr(publishing, "export", export)
    monkeypatch.setattr(known_answer, "make", lambda _path: "{}")
