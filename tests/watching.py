"""An observer in a process of its own, one who asks it, and nodes that tell it something."""

import http.client
import itertools
import json
import subprocess
import sys
import time
from contextlib import contextmanager

import yaml
from links import Hears

from emo.journal import Journal
from emo.mqtt.channel import MqttChannel
from emo.wire.messages import Event, Status


@contextmanager
def watching(folder, *options, stderr=subprocess.PIPE, **config):
    """(process, its first line). `config`: of its file; none: `options` say what to watch."""
    if config:
        folder.mkdir(exist_ok=True)
        path = folder / "watch.yaml"
        path.write_text(yaml.safe_dump({"port": 0, "state_dir": str(folder / "state"), **config}), encoding="utf-8")
        options = ("--config", str(path), *options)
    command = [sys.executable, "-m", "emo.cli", "watch", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        line = process.stdout.readline().strip()
        assert line, process.communicate()
        yield process, line
    finally:
        process.kill()
        process.communicate()


class Asker:
    """Of the server at `url`."""

    def __init__(self, url):
        self.host = url.partition("//")[2].strip("/")

    def __call__(self, path, method="GET", body=None, **headers):
        """(status, headers, body); names of `headers` with _ for -."""
        connection = http.client.HTTPConnection(self.host, timeout=20)
        try:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, names)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def json(self, path, **headers):
        status, _, body = self(path, **headers)
        assert status == 200, (path, status, body[:300])
        return json.loads(body)

    def light(self, node):
        found = [each["light"] for each in self.json("/api/state")["nodes"] if each["id"] == node]
        return found[0] if found else None

    def until(self, holds, seconds=20.0):
        end = time.monotonic() + seconds
        while not holds(state := self.json("/api/state")):
            assert time.monotonic() < end, state
            time.sleep(0.05)
        return state


class Events:
    """Server-sent events of one connection, as they come."""

    def __init__(self, host, **headers):
        self._connection = http.client.HTTPConnection(host, timeout=20)
        self._connection.request("GET", "/api/events", headers={n.replace("_", "-"): v for n, v in headers.items()})
        self.response = self._connection.getresponse()

    def __iter__(self):
        name, number = "", None
        while line := self.response.readline().decode().rstrip("\n"):
            key, _, value = line.partition(": ")
            if key == "event":
                name = value
            elif key == "id":
                number = int(value)
            elif key == "data":
                yield name, number, json.loads(value)
                number = None
                self.response.readline()

    def close(self):
        self._connection.close()


class Teller:
    """A node at a broker; it tells what it is told to."""

    def __init__(self, broker, name, role):
        self.name, self.role, self._numbers = name, role, itertools.count()
        will = Status(name, role, online=False)
        self.channel = MqttChannel(broker, f"{broker.root}-{name}-wan", [], Journal(), will)
        self.channel.start(Hears(lambda _: None, lambda: Status(name, role, online=True, samples=64)))
        self.channel.wait_connected(10)

    def event(self, name, **fields):
        self.channel.publish(Event(self.name, self.role, next(self._numbers), round(time.time(), 3), name, fields))

    def publish(self, message):
        self.channel.publish(message)

    def close(self, **how):
        self.channel.publish(Status(self.name, self.role, online=False))
        self.channel.stop(**how)
