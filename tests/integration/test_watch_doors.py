"""Who is let in to the page of `emo watch`, and what one is told who starts it amiss; brokers that go, readers that do not read."""

import contextlib
import json
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from watching import Asker, Events, Teller, watching

from emo.wire.messages import Report, RunState

KEY = "0123456789abcdef-key"


def wan(broker, root):
    return broker.model_copy(update={"root": root}).model_dump(mode="json", exclude_none=True)


def test_keys_and_tls(broker, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(cert)]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*made, *names], check=True, capture_output=True)
    (tmp_path / "keys").write_text(f"# of the operators\n{KEY}\n")
    config = {"api_key_file": str(tmp_path / "keys"), "tls_cert": str(cert), "tls_key": str(key)}
    with watching(tmp_path / "watch", wan=wan(broker, "locked"), **config) as (process, line):
        url = line.rpartition(" ")[2].strip("/")
        assert url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(cert))

        class Stay(urllib.request.HTTPRedirectHandler):
            def redirect_request(self, *_args):
                return None

        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), Stay)

        def ask(path, **headers):
            request = urllib.request.Request(url + path, headers={k.replace("_", "-"): v for k, v in headers.items()})
            with contextlib.closing(_open(opener, request)) as answer:
                return answer.status, answer.headers

        assert ask("/healthz")[0] == 200
        assert ask("/")[0] == 200  # the page itself, which asks for a key
        for path in ("/api/state", "/api/events", "/api/log", "/api/history", "/metrics", "/api/nodes/cloud"):
            assert ask(path)[0] == 401, path
        assert ask("/api/state", authorization=f"Bearer {KEY}")[0] == 200
        assert ask("/api/state", x_api_key=KEY)[0] == 200
        assert ask("/api/state", x_api_key=KEY + "x")[0] == 401
        assert ask("/?key=wrong")[0] == 401
        status, headers = ask(f"//evil.example/?x=1&key={KEY}")
        assert (status, headers["Location"]) == (303, "/evil.example/?x=1")
        cookie = headers["Set-Cookie"]
        assert cookie.endswith("; Path=/; HttpOnly; SameSite=Strict; Secure")
        assert KEY not in cookie
        assert ask("/api/state", cookie=cookie.partition(";")[0])[0] == 200
        assert ask("/api/state", cookie=cookie.partition(";")[0] + "0")[0] == 401
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=10)
        assert KEY not in out + err


def _open(opener, request):
    try:
        return opener.open(request, timeout=20)
    except urllib.error.HTTPError as error:
        return error


def test_readers_beyond_64_are_refused_and_one_that_does_not_read_harms_nobody(broker, tmp_path):
    place = broker.model_copy(update={"root": "crowded"})
    with contextlib.ExitStack() as stack:
        process, line = stack.enter_context(watching(tmp_path, wan=wan(broker, "crowded")))
        ask = Asker(line.rpartition(" ")[2])
        ask.until(lambda state: state["watcher"]["connected"])
        host, port = ask.host.split(":")
        deaf = stack.enter_context(socket.create_connection((host, int(port))))
        deaf.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        readers = [Events(ask.host) for _ in range(63)]
        for reader in readers:
            stack.callback(reader.close)
        assert [reader.response.status for reader in readers] == [200] * 63
        assert ask("/api/events")[0] == 503
        teller = Teller(place, "cloud", "cloud")
        stack.callback(teller.close)
        ask.until(lambda state: state["nodes"])
        before = memory(process.pid)
        for number in range(350):  # 2 MiB, to 64 readers; of one node no more are read at once
            teller.event("paused", round=number, text=["x" * 300] * 20)
            if number % 50 == 49:
                ask.until(lambda _, n=number: newest(ask) == n)
        rounds = (
            data["fields"]["round"] for name, _, data in readers[0] if name == "event" and data["name"] == "paused"
        )
        assert [next(rounds) for _ in range(350)] == list(range(350))
        for reader in readers:
            reader.close()

        def enters(_):
            with contextlib.closing(Events(ask.host)) as reader:
                return reader.response.status == 200

        ask.until(enters)
        assert memory(process.pid) - before < 60 << 20


def newest(ask):
    entries = ask.json("/api/log?limit=1&name=paused")["entries"]
    return entries[0]["fields"]["round"] if entries else None


def memory(pid):
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * 4096


def test_it_outlives_its_broker_and_knows_after_a_restart_what_it_had_seen(mosquitto, tmp_path):
    mosquitto.start()
    place = mosquitto.broker.model_copy(update={"root": "away"})
    options = wan(mosquitto.broker, "away")
    with watching(tmp_path, wan=options) as (process, line):
        ask = Asker(line.rpartition(" ")[2])
        ask.until(lambda state: state["watcher"]["connected"])
        time.sleep(0.3)
        cloud = Teller(place, "cloud", "cloud")
        cloud.publish(RunState("run-1", 2, 3, "training"))
        cloud.event("begun", run="run-1")
        ask.until(lambda state: state["run"] == "run-1" and ask.light("cloud") == "alive")
        since = ask.json("/api/state")["watcher"]["changed"]
        mosquitto.stop()
        state = ask.until(lambda state: not state["watcher"]["connected"])
        assert state["watcher"]["changed"] > since
        mosquitto.start()
        ask.until(lambda state: state["watcher"]["connected"], 40)
        cloud.publish(Report("cloud", "cloud", "run-1", time.time(), figures={"fl.sfl_bytes": 77.0}))
        ask.until(lambda state: state["bytes"]["sfl"] == 77, 40)
        time.sleep(0.7)
        process.kill()
    cloud.event("paused", round=2)  # while it is away
    with watching(tmp_path, wan=options) as (process, line):
        ask = Asker(line.rpartition(" ")[2])
        state = ask.until(lambda _: newest(ask) == 2)
        assert (state["run"], state["bytes"]["sfl"]) == ("run-1", 77)
        assert "begun" in [entry["name"] for entry in ask.json("/api/log")["entries"]]
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    cloud.close(drain_s=0)
    with watching(tmp_path, "--run", str(tmp_path / "state"), "--port", "0") as (_, line):
        assert line.startswith(f"watching {tmp_path}/state at http://")
        ask = Asker(line.rpartition(" ")[2])
        state = ask.json("/api/state")
        assert (state["run"], state["watcher"]["source"], ask.light("cloud")) == ("run-1", "record", "alive")
        port = ask.host.partition(":")[2]
        assert "--port N takes another port" in refused("--run", str(tmp_path / "state"), "--port", port)


def refused(*words):
    """What it says on stderr, in one line."""
    command = [sys.executable, "-m", "emo.cli", "watch", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_what_cannot_be_shown_is_said_in_one_line(tmp_path):
    assert "no record of a run" in refused("--run", str(tmp_path), "--port", "0")


@pytest.mark.parametrize("text", ["fleet: none.yaml\n", "api_key_file: none\n"])
def test_a_file_that_does_not_fit_is_said_in_one_line(text, tmp_path):
    path = tmp_path / "watch.yaml"
    path.write_text(f"state_dir: {json.dumps(str(tmp_path / 'state'))}\n{text}port: 0\n")
    assert "none" in refused("--config", str(path))
