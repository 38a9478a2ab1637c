"""Small requests that cost much: while they go on, health is answered within a second, memory stays bounded, and an honest
client gets its answers. Attackers come from 127.0.0.2, the honest client from 127.0.0.1."""

import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from subprocess import PIPE

import attackers
import psutil
import pytest
from attackers import MIB, picture
from serving import request, serving, write

from cloud_app.serving.repository import Repository

# What is large on a real machine is small here: files, memory for clients, time for a picture.
BEFORE = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
import cloud_app.serving.http.server as endpoint, cloud_app.serving.http.connections as connections, cloud_app.serving.workers as workers
endpoint.MAX_HELD, endpoint.DRAIN_SECONDS, connections.WRITE_SECONDS, workers.CPU_SECONDS = 32 << 20, 1, 0.5, 1.0
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """`tiny`; `wide`, whose largest request has 4 MB; `broad`, whose largest answer has 10 MB."""
    folder = tmp_path_factory.mktemp("attacked")
    made = Repository(folder / "models")
    for name, side, classes in (("tiny", 2, 3), ("wide", 64, 3), ("broad", 2, 20_000)):
        onnx = write(folder / "in.onnx", "uint8", side=side, classes=classes)
        made.add(name, onnx, [f"class {number}" for number in range(classes)], (3, side, side))
    return made.root


@pytest.fixture(scope="module")
def attacked(models):
    with serving(models, before=BEFORE) as (process, line):
        yield psutil.Process(process.pid), int(re.search(r":(\d+)$", line)[1])


class Honest:
    """Asks for health, for a result and for a picture's label, on a new connection each time."""

    def __init__(self, process, port):
        self.process, self.port = process, port
        self.wrong, self.seconds, self.asked = [], [], 0
        self.before = self._memory()
        self.memory = 0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._health, self._infer, self._weigh)]

    def _ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            if answer.status != 200:
                self.wrong.append((path, answer.status, answer.read()[:200]))
        except (OSError, http.client.HTTPException) as error:
            self.wrong.append((path, repr(error)))
        finally:
            connection.close()

    def _health(self):
        while not self._over.is_set():
            began = time.monotonic()
            self._ask("GET", "/v2/health/live")
            self.seconds.append(time.monotonic() - began)
            self._over.wait(0.02)

    def _infer(self):
        body, small = json.dumps(request()), picture(40, 30)
        while not self._over.is_set():
            self._ask("POST", "/v2/models/tiny/infer", body)
            self._ask("POST", "/v2/models/tiny/predict", small)
            self.asked += 1
            self._over.wait(0.02)

    def _weigh(self):
        while not self._over.wait(0.02):
            self.memory = max(self.memory, self._memory() - self.before)

    def _memory(self):
        return self.process.memory_info().rss

    def __enter__(self):
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for each in self._threads:
            each.join()


@pytest.fixture(scope="module")
def attack(attacked):
    command = [sys.executable, attackers.__file__, str(attacked[1])]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environ, stdin=PIPE, stdout=PIPE, text=True) as process:

        def call(name):
            process.stdin.write(f"{name}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "over\n"

        yield call
        process.stdin.close()


@pytest.mark.parametrize("name", attackers.ATTACKS)
def test_an_attack_is_felt_by_the_attacker(attacked, attack, name):
    for _ in range(3):  # where the machine has other work a second is soon over
        with Honest(*attacked) as honest:
            attack(name)
        slowest, more = max(honest.seconds), honest.memory / MIB
        print(f"\n{name}: health {slowest:.2f} s, +{more:.0f} MiB, wrong: {len(honest.wrong)}")  # with -s
        assert honest.wrong == []
        assert honest.asked >= 1
        assert honest.memory < 150 * MIB
        if slowest <= 1:
            return
    pytest.fail(f"health took {slowest:.1f} s")


def test_it_ends_when_it_is_told_to_whatever_it_is_doing(attacked):
    """The last test here: it ends the endpoint of the others."""
    process, port = attacked
    attacker = attackers.Attacker(port)
    attackers.scans(attacker)
    attackers.readers(attacker)
    attackers.bodies(attacker)
    children = process.children()
    assert children
    process.terminate()
    gone, alive = psutil.wait_procs([process, *children], 20)
    attacker.close()
    assert alive == []
    assert [each.returncode for each in gone if each == process] == [0]
