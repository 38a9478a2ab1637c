"""Another version takes over while the endpoint runs: no request may suffer from it."""

import http.client
import json
import threading
import time

import psutil
import pytest
from loops import endless
from serving import LABELS, add, ask, request, serving, until, write


class Clients:
    """Ask without a pause; `wrong` holds every answer that is no result, `versions` those that answered."""

    def __init__(self, url, count=4):
        self.wrong, self.versions, self.url = [], set(), url
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]

    def _run(self):
        connection = http.client.HTTPConnection(self.url, timeout=20)
        while not self._stop.is_set():
            connection.request("POST", "/v2/models/tiny/infer", json.dumps(request()))
            response = connection.getresponse()
            answer = json.loads(response.read())
            if response.status != 200 or answer["outputs"][0]["data"] != pytest.approx([0.06, 0.22, 0.38]):
                self.wrong.append(answer)
            self.versions.add(answer.get("model_version"))
        connection.close()

    def __enter__(self):
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for each in self._threads:
            each.join()


def test_another_version_takes_over_without_a_failed_request(repository, tmp_path):
    with serving(repository.root, options="threads=1, poll_s=0.05") as (_, line):
        url = line.split("http://")[1]

        def version():
            return ask(url, "GET", "/v2/models/tiny")[1]["versions"]

        with Clients(url) as clients:
            until(lambda: clients.versions, {"1"})
            add(repository, tmp_path)
            until(version, ["2"])
            add(repository, tmp_path, stored=False)
            until(version, ["3"])
            repository.rollback("tiny")
            until(version, ["2"])
            repository.promote("tiny", 1)
            until(version, ["1"])
            repository.promote("tiny", None)
            until(version, ["3"])
            assert repository.prune("tiny", 1) == [1, 2]
            time.sleep(0.2)
        assert clients.wrong == []
        assert clients.versions >= {"1", "2", "3"}


def test_a_version_that_fails_its_self_test_is_not_served(repository, tmp_path):
    stored = json.loads(repository.selftest("tiny", 1))
    stored["answer"]["outputs"][0]["data"][0] += 1
    bad = write(tmp_path / "bad.onnx", "uint8")
    with serving(repository.root, options="threads=1, poll_s=0.05") as (process, line):
        url = line.split("http://")[1]
        with Clients(url, 2) as clients:
            repository.add("tiny", bad, LABELS, (3, 2, 2), selftest=json.dumps(stored))
            (tmp_path / "bad.onnx").write_bytes(b"no model")
            until(lambda: "load_failures_total 1" in ask(url, "GET", "/metrics")[1], wanted=True)
            repository.add("tiny", bad, LABELS, (3, 2, 2))
            until(lambda: "load_failures_total 2" in ask(url, "GET", "/metrics")[1], wanted=True)
        assert clients.wrong == []
        assert clients.versions == {"1"}
        reasons = {row["version"]: row["reason"] for row in ask(url, "POST", "/v2/repository/index")[1]}
        assert reasons["1"] == ""
        assert "is off by" in reasons["2"]
        assert "onnxruntime cannot load it" in reasons["3"]
        process.terminate()
        assert "version 1 goes on" in process.communicate(timeout=20)[1]
    with serving(repository.root) as (_, line):  # neither after a restart
        assert line.startswith("serving tiny version 1 at")


def test_a_version_that_does_not_end_holds_up_nothing(repository, tmp_path):
    endless_model = endless(write(tmp_path / "loop.onnx", "uint8"))
    with serving(repository.root, options="threads=1, poll_s=0.05") as (process, line):
        url = line.split("http://")[1]
        with Clients(url, 2) as clients:
            repository.add("tiny", endless_model, LABELS, (3, 2, 2))
            until(lambda: len(psutil.Process(process.pid).children()), 1)
            (child,) = psutil.Process(process.pid).children()
            time.sleep(0.5)
            assert child.is_running()
            began = time.monotonic()
            assert ask(url, "GET", "/v2/health/ready")[0] == 200
            assert time.monotonic() - began < 1
        assert (clients.wrong, clients.versions) == ([], {"1"})
        process.terminate()
        assert process.wait(20) == 0
        assert not child.is_running()


def test_a_broken_policy_and_a_folder_that_is_gone_change_nothing(repository):
    with serving(repository.root, options="threads=1, poll_s=0.05") as (process, line):
        url = line.split("http://")[1]
        config = repository.root / "tiny" / "config.pbtxt"
        text = config.read_text()
        config.write_text(text + "version_policy { specific { versions: [ 9 ] } }\n")
        time.sleep(0.3)
        config.write_bytes(b"\xff")
        time.sleep(0.3)
        repository.root.rename(repository.root.with_name("away"))
        time.sleep(0.3)
        assert ask(url, "POST", "/v2/models/tiny/infer", json.dumps(request()))[0] == 200
        repository.root.with_name("away").rename(repository.root)
        config.write_text(text)
        assert process.poll() is None
