"""One endpoint for all tests here: `tiny` takes uint8 (its second version), `real` float32."""

import http.client
import json
import re

import pytest
from serving import LABELS, add, serving, write

from cloud_app.repository import Repository


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    repository = Repository(folder / "models")
    for name, dtype, times in (("tiny", "uint8", 2), ("real", "float32", 1)):
        for _ in range(times):
            repository.add(name, write(folder / "in.onnx", dtype), LABELS, (3, 2, 2), dtype)
    with serving(repository.root) as (process, line):
        yield process, line


@pytest.fixture(scope="session")
def url(served):
    return re.search(r"http://\S+$", served[1])[0]


@pytest.fixture
def ask(url):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)

    def call(method, path, body=None, headers=None):
        if isinstance(body, dict):
            body = json.dumps(body)
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        text = response.read()
        is_json = response.headers["Content-Type"] == "application/json"
        return response.status, json.loads(text) if is_json else text.decode()

    yield call
    connection.close()


@pytest.fixture
def repository(tmp_path):
    """`tiny`, version 1, with a self-test."""
    made = Repository(tmp_path / "models")
    add(made, tmp_path)
    return made
