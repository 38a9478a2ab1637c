"""One endpoint for all tests here: `tiny` takes uint8 (its second version), `real` float32. A site of brokers with TLS for
the tests of a file."""

import http.client
import json
import re

import paho.mqtt.client as paho
import pytest
from secured import LINKS, Rogue, Site
from serving import LABELS, add, serving, write

from cloud_app.serving.repository import Repository
from emo.mqtt import tls


@pytest.fixture
def quick(monkeypatch):
    """Reconnects within a tenth of a second in place of one to fifteen."""
    wait = paho.Client.reconnect_delay_set
    monkeypatch.setattr(paho.Client, "reconnect_delay_set", lambda self, *_args: wait(self, 0.05, 0.1))


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


@pytest.fixture(scope="module")
def site(mosquitto_program, tmp_path_factory):
    made = Site(tmp_path_factory.mktemp("site"), mosquitto_program)
    made.lines = {link: made.broker(edge) for link, edge in LINKS.items()}
    yield made
    made.close()


@pytest.fixture
def client(site):
    """A client of `name` at the WAN or the LAN broker."""
    made = []

    def connect(link, name, **options):
        made.append(Rogue(site.lines[link], tls.context(site.node(name)), f"emo-{name}-{link}", **options))
        assert made[-1].connected, made[-1].refused
        return made[-1]

    yield connect
    for each in made:
        each.close()
