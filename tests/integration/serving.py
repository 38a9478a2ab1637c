"""A tiny ONNX model, requests to it, and an endpoint in a process of its own."""

import http.client
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cloud_app.serving import known_answer

LABELS = ["red", "green", "blue"]
WEIGHTS = np.array([[i == j // 4 for i in range(3)] for j in range(12)], np.float32) / 100
START = """
from pathlib import Path
from cloud_app.serving.batching import Limits
from cloud_app.serving.http.server import Options, serve
{}
serve(Path({!r}), {!r}, 0, Options({}))
"""


def write(path, dtype, batch="batch", side=2, classes=3):
    """logits: the sum of each of three channels of `side` x `side`, over 100; for float32 times 10, so that it can overflow.
    With more `classes` zeros follow."""
    weights = np.zeros((3 * side * side, classes), np.float32)
    weights[:, :3] = np.repeat(WEIGHTS[::4], side * side, 0) * (1 if dtype == "uint8" else 1000)
    kind = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}[dtype]
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, classes]) for name in ("logits", "probabilities")
    ]
    inputs = [helper.make_tensor_value_info("images", kind, [batch, 3, side, side])]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, [numpy_helper.from_array(weights, "weights")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"round": "7"})
    onnx.save(model, path)
    return path


@contextmanager
def serving(models, host="127.0.0.1", options="threads=1", before="", **environ):
    """`options`: of `Options`, as Python text; `before`: a line that runs first."""
    process = subprocess.Popen(
        [sys.executable, "-c", START.format(before, str(models), host, options)],
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield process, line.strip()
    finally:
        process.kill()
        process.communicate()


def request(data=None, shape=(1, 3, 2, 2), datatype="UINT8", name="images", **more):
    data = list(range(12)) if data is None else data
    return {"inputs": [{"name": name, "shape": list(shape), "datatype": datatype, "data": data}], **more}


def changed(**change):
    body = request()
    body["inputs"][0].update(change)
    return body


def without(key):
    body = request()
    del body["inputs"][0][key]
    return body


def add(repository, folder, stored=True):
    onnx = write(folder / "in.onnx", "uint8")
    return repository.add("tiny", onnx, LABELS, (3, 2, 2), selftest=known_answer.make(onnx) if stored else None)


def ask(url, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection(url, timeout=20)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        text = response.read().decode()
        return response.status, json.loads(text) if text.startswith(("{", "[")) else text
    finally:
        connection.close()


def until(found, wanted, seconds=20):
    end = time.monotonic() + seconds
    while found() != wanted:
        assert time.monotonic() < end, f"{found()} is not {wanted}"
        time.sleep(0.05)
