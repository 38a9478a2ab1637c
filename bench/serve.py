"""Compares the endpoint with onnxruntime alone and with a naive endpoint.

    python -m bench.serve [--json FILE] [--requests 100000 --clients 32]

The CIFAR ensemble at width 0.25 (VGG trunk, two overlays, untrained: weights do not change the time), an image a
request. `session_rps`: images a second by onnxruntime alone, the endpoint's threads, as many images a run as there are
clients; half of it measured before and half after the endpoint. `endpoint_rps`, `p50_ms`, `p99_ms`: over HTTP, binary,
the clients a process on the same machine (bench.load). `ratio`: of the two. `naive_rps`: bench.peers.fastapi_endpoint, JSON, the same
clients. `cpu_ratio`: microseconds of processor an image by onnxruntime alone, over those of endpoint and client; what
else runs on the machine disturbs it less than `ratio`. `resident_growth`: the endpoint's memory at its highest after the first tenth of the requests, over its memory
there. `shared_trunk_ratio`: bench.trunk.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil

from bench import trunk
from cloud_app.ensemble import model
from cloud_app.ensemble.onnx_export import export
from cloud_app.serving import known_answer
from cloud_app.serving.batching import Limits
from cloud_app.serving.onnx_session import cpus, open_session
from cloud_app.serving.repository import Repository
from emo.config import Model
from emo.models import split_network
from emo.parser import Parser

SPEC = Model(name="vgg6", width=0.25, input=(3, 32, 32), classes=10)
LABELS = [f"class {number}" for number in range(SPEC.classes)]


def main() -> None:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=32, help="connections at a time")
    parser.add_argument("--requests", type=int, default=100_000, help="in all")
    parser.add_argument("--threads", type=int, default=cpus(), help="onnxruntime's")
    parser.add_argument("--runs", type=int, default=Limits().runs, help="at a time, sharing the threads")
    parser.add_argument(
        "--delay-ms", type=float, default=1e3 * Limits().delay_s, help="how long a request waits for company"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE (default: no file)")
    args = parser.parse_args()
    figures: dict[str, Any] = {"cpus": cpus(), "load_before": round(os.getloadavg()[0], 2)}
    with TemporaryDirectory() as folder:
        figures |= _measure(Path(folder), args)
    figures["shared_trunk_ratio"] = trunk.measure(SPEC, threads=args.threads)["shared_trunk_ratio"]
    for key, value in figures.items():
        print(f"{key:18} {value}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    onnx = _export(folder)
    Repository(folder / "models").add("cifar", onnx, LABELS, SPEC.input, selftest=known_answer.make(onnx))
    image = np.random.default_rng(0).integers(0, 256, (1, *SPEC.input), np.uint8)
    batch = min(args.clients, Limits().batch)
    before = _session(onnx, args.threads, batch)
    endpoint = _endpoint(folder, image, args)
    after = _session(onnx, args.threads, batch)
    naive = _naive(folder, onnx, image, args)
    session = (before[0] + after[0]) / 2
    endpoint["session_us"] = round((before[1] + after[1]) / 2, 1)
    return {
        "clients": args.clients,
        "threads": args.threads,
        "session_batch": batch,
        "session_rps": round(session, 1),
        "endpoint_rps": endpoint.pop("rps"),
        **endpoint,
        "naive_rps": naive,
        "ratio": round(endpoint["requests"] / endpoint["seconds"] / session, 3),
        "cpu_ratio": round(endpoint["session_us"] / endpoint["cpu_us"], 3),
        "over_naive": round(endpoint["requests"] / endpoint["seconds"] / naive, 2),
    }


def _export(folder: Path) -> Path:
    scale = np.full(SPEC.input[0], 100, np.float32)
    overlays = {f"{number}": split_network.weights(split_network.overlay(SPEC, number)) for number in range(2)}
    parts = model.parts(split_network.weights(split_network.network(SPEC, 0)), overlays)
    path = folder / "model.onnx"
    export(model.build(SPEC, parts, scale, scale), path, SPEC.input, LABELS, {})
    return path


def _session(onnx: Path, threads: int, batch: int, seconds: float = 4.0) -> tuple[float, float]:
    """Images a second, and microseconds of processor an image."""
    session = open_session(onnx, threads)
    images = np.random.default_rng(0).integers(0, 256, (batch, *SPEC.input), np.uint8)
    session.run(None, {"images": images})
    runs, began, busy = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        session.run(None, {"images": images})
        runs += 1
    seconds, cpu = time.perf_counter() - began, time.process_time() - busy
    return runs * batch / seconds, 1e6 * cpu / (runs * batch)


def _endpoint(folder: Path, image: np.ndarray[Any, Any], args: argparse.Namespace) -> dict[str, Any]:
    size = {"binary_data_size": image.nbytes}
    tensor = {"name": "images", "shape": list(image.shape), "datatype": "UINT8", "parameters": size}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    (folder / "binary").write_bytes(head + image.tobytes())
    options = ["--models", str(folder / "models"), "--port", "0", "--threads", str(args.threads)]
    command = [
        "-m",
        "emo.cli",
        "serve",
        *options,
        "--max-delay-ms",
        str(args.delay_ms),
        "--runs",
        str(args.runs),
    ]
    headers = [f"Inference-Header-Content-Length: {len(head)}"]
    with _running(command) as (process, url):
        path = f"{url}/v2/models/cifar/infer"
        first = _load(path, folder / "binary", headers, args.clients, args.requests // 10)
        rss, busy = process.memory_info().rss, sum(process.cpu_times()[:2])
        figures, highest = dict[str, Any](), rss
        for _ in range(9):
            each = _load(path, folder / "binary", headers, args.clients, args.requests // 10)
            highest = max(highest, process.memory_info().rss)
            figures = {key: [*figures.get(key, []), value] for key, value in each.items()}
        busy = sum(process.cpu_times()[:2]) - busy
    return {
        "rps": round(sum(figures["requests"]) / sum(figures["seconds"]), 1),
        "requests": sum(figures["requests"]),
        "seconds": round(sum(figures["seconds"]), 3),
        "errors": int(first["errors"] + sum(figures["errors"])),
        "p50_ms": sorted(figures["p50_ms"])[len(figures["p50_ms"]) // 2],
        "p99_ms": max(figures["p99_ms"]),
        "cpu_us": round(1e6 * (busy + sum(figures["cpu_seconds"])) / sum(figures["requests"]), 1),
        "resident_mib": round(highest / 2**20, 1),
        "resident_growth": round(highest / rss, 4),
    }


def _naive(folder: Path, onnx: Path, image: np.ndarray[Any, Any], args: argparse.Namespace) -> float:
    tensor = {"shape": list(image.shape), "data": image.ravel().tolist()}
    (folder / "json").write_text(json.dumps({"inputs": [tensor]}))
    with _running(["-m", "bench.peers.fastapi_endpoint", str(onnx), str(args.threads)]) as (_, url):
        headers = ["Content-Type: application/json"]
        requests = max(args.clients, args.requests // 50)
        _load(f"{url}/infer", folder / "json", headers, args.clients, requests // 4)
        figures = _load(f"{url}/infer", folder / "json", headers, args.clients, requests)
    if figures["errors"]:
        sys.exit(f"the naive endpoint answered {figures['errors']} requests with an error")
    return figures["rps"]


@contextmanager
def _running(command: list[str]) -> Iterator[tuple[psutil.Process, str]]:
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            url = re.search(r"http://\S+", line)
            if url is None:
                sys.exit(f"{' '.join(command)}: did not start: {line}")
            yield psutil.Process(process.pid), url[0]
        finally:
            process.terminate()


def _load(url: str, body: Path, headers: list[str], clients: int, requests: int) -> dict[str, float]:
    options = ["--clients", str(clients), "--requests", str(requests)]
    out = subprocess.run(
        [sys.executable, "-m", "bench.load", url, str(body), *headers, *options],
        stdout=subprocess.PIPE,
        check=True,
    )
    figures: dict[str, float] = json.loads(out.stdout)
    return figures


if __name__ == "__main__":
    main()
