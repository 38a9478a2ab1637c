"""What an operator sets and reads: keys, TLS, the access log, figures, and what happens under too much load."""

import contextlib
import http.client
import json
import re
import socket
import ssl
import subprocess
import threading
import time

import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from serving import ask, request, serving, until

from cloud_app.serving.client import predict
from emo.errors import ServeError

KEY = "0123456789abcdef"


def test_keys(repository, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"# ours\n\n{KEY}\nanother-key-of-ours\n")
    bearer = {"Authorization": f"Bearer {KEY}"}
    options = f"threads=1, poll_s=0.05, api_key_file=Path({str(keys)!r})"
    with serving(repository.root, options=options, EMO_API_KEY="from-the-environment") as (_, line):
        url = line.split("http://")[1]
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert ask(url, "GET", path)[0] == 200
        for path in ("/v2", "/v2/models/tiny", "/metrics", "/nothing", "/docs"):
            for headers in (
                {},
                {"Authorization": f"Basic {KEY}"},
                {"X-API-Key": KEY[:-1]},
                {"X-API-Key": ""},
            ):
                status, answer = ask(url, "GET", path, headers=headers)
                assert (status, list(answer)) == (401, ["error"])
        for headers in (bearer, {"X-API-Key": "another-key-of-ours"}, {"X-API-Key": "from-the-environment"}):
            assert ask(url, "GET", "/v2/models/tiny", headers=headers)[0] == 200
        body = json.dumps(request())
        assert ask(url, "POST", "/v2/models/tiny/infer", body)[0] == 401
        assert ask(url, "POST", "/v2/models/tiny/infer", body, bearer)[0] == 200

        unload, load = "/v2/repository/models/tiny/unload", "/v2/repository/models/tiny/load"
        assert ask(url, "POST", unload)[0] == 401
        assert ask(url, "POST", unload, b'{"parameters": {"unload_dependents": true}}', bearer) == (200, {})
        time.sleep(0.2)  # the poll does not bring it back
        assert ask(url, "POST", "/v2/models/tiny/infer", body, bearer)[0] == 404
        assert ask(url, "GET", "/v2/health/ready") == (503, {"ready": False})
        assert ask(url, "GET", "/v2/health/live") == (200, {"live": True})
        assert ask(url, "POST", unload, b"", bearer)[0] == 404
        assert ask(url, "POST", "/v2/repository/index", b'{"ready": true}', bearer) == (200, [])
        assert ask(url, "POST", load, b'{"parameters": {"config": "{}"}}', bearer)[0] == 400
        assert ask(url, "POST", load, b"{}", bearer) == (200, {})
        assert ask(url, "GET", "/v2/health/ready") == (200, {"ready": True})
        assert ask(url, "POST", "/v2/models/tiny/infer", body, bearer)[0] == 200
        for name in ("nothing", "..", "%2e%2e"):
            status, answer = ask(url, "POST", f"/v2/repository/models/{name}/load", b"", bearer)
            assert (status, list(answer)) == (400, ["error"])


def test_pages_of_the_origins_that_were_named_may_ask(repository):
    before = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,x-api-key",
    }
    page, other = {"Origin": "https://a.example"}, {"Origin": "https://a.example.org"}
    path, body = "/v2/models/tiny/infer", json.dumps(request())

    def said(url, method, headers, data=None):
        connection = http.client.HTTPConnection(url, timeout=20)
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        response.read()
        connection.close()
        return response.status, response.headers

    options = "threads=1, origins=('https://a.example', 'http://localhost:3000')"
    with serving(repository.root, options=options, EMO_API_KEY=KEY) as (_, line):
        url = line.split("http://")[1]
        status, headers = said(url, "OPTIONS", page | before)
        assert (status, headers["Access-Control-Allow-Origin"]) == (204, "https://a.example")
        assert "POST" in headers["Access-Control-Allow-Methods"]
        assert {"content-type", "x-api-key"} <= set(headers["Access-Control-Allow-Headers"].split(", "))
        assert headers["Vary"] == "origin"
        for key, found in ((KEY, 200), ("wrong", 401)):
            status, headers = said(url, "POST", page | {"X-API-Key": key}, body)
            assert (status, headers["Access-Control-Allow-Origin"]) == (found, "https://a.example")
            status, headers = said(url, "POST", other | {"X-API-Key": key}, body)
            assert (status, headers["Access-Control-Allow-Origin"]) == (found, None)
        for headers in (other | before, before, page):
            status, answered = said(url, "OPTIONS", headers)
            assert (status, answered["Access-Control-Allow-Origin"]) == (401, None)
    with serving(repository.root, options="threads=1, origins=('*',)") as (_, line):
        _, headers = said(line.split("http://")[1], "POST", page, body)
        assert (headers["Access-Control-Allow-Origin"], headers["Vary"]) == ("*", None)


def test_tls(repository, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        str(key),
        "-out",
        str(cert),
    ]
    subprocess.run(
        [*made, "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
    )
    options = f"threads=1, tls=(Path({str(cert)!r}), Path({str(key)!r}))"
    few = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (180, 180))"
    with serving(repository.root, options=options, before=few) as (_, line), contextlib.ExitStack() as stack:
        host = re.search(r"https://(\S+)$", line)
        port = int(host[1].rpartition(":")[2])
        for _ in range(250):  # that never begin with TLS
            silent = stack.enter_context(socket.socket())
            silent.bind(("127.0.0.2", 0))
            silent.connect(("127.0.0.1", port))
        context = ssl.create_default_context(cafile=str(cert))
        connection = http.client.HTTPSConnection(host[1], timeout=20, context=context)
        connection.request("POST", "/v2/models/tiny/infer", json.dumps(request()))
        assert connection.getresponse().status == 200
        connection.close()
        image = tmp_path / "a.png"
        Image.new("RGB", (2, 2)).save(image)
        assert len(predict(f"https://{host[1]}", "tiny", image, ca=cert).labels) == 3
        with pytest.raises(ServeError, match=r"its certificate is not believed: self.signed.*--ca FILE"):
            predict(f"https://{host[1]}", "tiny", image)
        with pytest.raises(ServeError, match="no PEM certificates can be read"):
            predict(f"https://{host[1]}", "tiny", image, ca=image)
    with serving(repository.root) as (_, line), pytest.raises(ServeError, match="Does it speak https"):
        predict(line.rpartition(" ")[2].replace("http:", "https:"), "tiny", image)


def test_tls_files_that_do_not_fit_are_named(repository, tmp_path):
    from cloud_app.serving.http.server import Options, serve

    (tmp_path / "cert.pem").write_text("no certificate")
    with pytest.raises(ServeError, match=r"cert\.pem and .*none\.pem"):
        serve(repository.root, port=0, options=Options(tls=(tmp_path / "cert.pem", tmp_path / "none.pem")))


def test_the_access_log_says_who_asked_what_and_no_more(repository, tmp_path):
    log = tmp_path / "access.jsonl"
    with serving(repository.root, options=f"threads=1, access_log={str(log)!r}", EMO_API_KEY=KEY) as (
        _,
        line,
    ):
        url = line.split("http://")[1]
        ask(url, "POST", "/v2/models/tiny/infer", json.dumps(request()), {"X-API-Key": KEY})
        ask(url, "POST", "/v2/models/tiny/infer?a=b", b"{", {"X-API-Key": KEY})
        ask(url, "GET", "/nothing%C3%A9%0A", headers={"X-API-Key": "x" * 16})
        until(lambda: len(log.read_text().splitlines()), 3)
    first, second, third = map(json.loads, log.read_text().splitlines())
    assert set(first) == {
        "time",
        "client",
        "method",
        "path",
        "status",
        "ms",
        "bytes_in",
        "bytes_out",
        "model",
        "version",
    }
    assert (first["client"], first["method"], first["status"]) == ("127.0.0.1", "POST", 200)
    assert (first["model"], first["version"], first["bytes_in"]) == ("tiny", 1, len(json.dumps(request())))
    assert (second["status"], second["path"]) == (400, "/v2/models/tiny/infer")
    assert (third["status"], third["model"]) == (401, None)
    assert KEY not in log.read_text()


def test_metrics(repository):
    with serving(repository.root) as (_, line):
        url = line.split("http://")[1]
        for body in (json.dumps(request()), json.dumps(request([0] * 24, (2, 3, 2, 2))), b"{"):
            ask(url, "POST", "/v2/models/tiny/infer", body)
        ask(url, "POST", "/v2/models/of-nobody/infer", b"{")
        text = ask(url, "GET", "/metrics")[1]
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    of = ("model", "tiny"), ("version", "1")
    for name, labels, value in (
        ("emo_requests_total", [of[0], ("status", "200"), of[1]], 2),
        ("emo_requests_total", [of[0], ("status", "400"), of[1]], 1),
        ("emo_failures_total", of, 1),
        ("emo_request_seconds_bucket", [("le", "+Inf"), *of], 3),
        ("emo_request_seconds_count", of, 3),
        ("emo_batch_samples_sum", of, 3),
        ("emo_queue_requests", of, 0),
        ("emo_model_loads_total", [], 1),
        ("emo_held_bytes", [], 0),
    ):
        assert samples[name, *labels] == value
    assert samples[("process_resident_memory_bytes",)] > 10_000_000
    assert "of-nobody" not in text  # what is not there makes no series


def test_a_full_queue_and_time_that_is_up_are_503(repository):
    slow = "import time, cloud_app.serving.model as p; p.Served.run = lambda self, images, options=None, run=p.Served.run: (time.sleep(0.4), run(self, images))[1]"
    found = []

    def one(url, parameters):
        connection = http.client.HTTPConnection(url, timeout=20)
        connection.request("POST", "/v2/models/tiny/infer", json.dumps(request(parameters=parameters)))
        response = connection.getresponse()
        found.append((response.status, response.headers["Retry-After"], json.loads(response.read()).get("error", "")))
        connection.close()

    options = "threads=1, poll_s=0, limits=Limits(batch=1, queue=2, runs=1)"
    with serving(repository.root, options=options, before=slow) as (_, line):
        url = line.split("http://")[1]
        threads = [threading.Thread(target=one, args=(url, {})) for _ in range(8)]
        for each in threads:
            each.start()
            time.sleep(0.03)
        for each in threads:
            each.join()
        full = [(after, text) for status, after, text in found if status == 503]
        assert sorted(status for status, *_ in found) == [200] * 3 + [503] * 5
        assert all(after == "1" and "are waiting already" in text for after, text in full)
        found.clear()
        threads = [threading.Thread(target=one, args=(url, {"timeout": 50_000})) for _ in range(2)]
        for each in threads:
            each.start()
            time.sleep(0.05)
        for each in threads:
            each.join()
        assert sorted(status for status, *_ in found) == [200, 503]
        assert any("was up" in text for *_, text in found)
