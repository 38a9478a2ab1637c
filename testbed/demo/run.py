"""`emo demo`: a broker, a cloud, two edges, a fleet and who watches it on this machine, as the processes that a fleet runs.

Children get no Ctrl-C of the terminal: this process ends them, in order, whatever happens.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from cloud_app.serving.client import predict
from cloud_app.watch import record, traffic
from emo.config import Data
from emo.data import registry
from emo.errors import ConfigError, EmoError
from testbed import figures
from testbed.demo.fleet import Fleet, Interrupted
from testbed.demo.page import WATCH, Page
from testbed.demo.view import View, show_report
from testbed.processes.broker import LocalBroker, free_port
from testbed.processes.child import serving_at

# By dataset: network and rounds.
_DEFAULTS = {"digits": ("cnn", 12), "cifar10": ("vgg6", 20), "cifar100": ("mobilenet6", 20)}
_START_S = 120.0


def run(args: argparse.Namespace, stop: threading.Event) -> int:
    """0 when it ran through, 130 after Ctrl-C. Raises EmoError with what went wrong in which process."""
    started = time.monotonic()
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="emo-demo-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            _run(args, stop, folder, stack, started)
        except Interrupted:
            print("interrupted: everything is stopped", file=sys.stderr)
            return 130
    return 0


def _run(args: argparse.Namespace, stop: threading.Event, folder: Path, stack: ExitStack, started: float) -> None:
    args = _with_defaults(args)
    broker = stack.enter_context(LocalBroker(folder, prefer=args.broker))
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    port = free_port(range(20_000, 30_000))  # the endpoint's, below those that the system gives to clients
    names = _write(args, folder, out, {"host": broker.config.host, "port": broker.config.port}, port)
    fleet = Fleet(folder)
    stack.callback(fleet.stop)
    print(f"broker {broker.kind} on port {broker.config.port}; a cloud, 2 edges, {args.devices} devices", flush=True)
    view = View(args.rounds)
    page = Page(fleet, view.say, args.open)
    fleet.start("cloud", "cloud", "--config", str(folder / "cloud.yaml"))
    for edge in ("edge-1", "edge-2"):
        fleet.start(edge, "edge", "--config", str(folder / f"{edge}.yaml"))
    fleet.start("devices", "device", "--config", *(str(folder / f"{name}.yaml") for name in names))
    if not args.no_page:
        page.start(str(folder / f"{WATCH}.yaml"))
    with view:
        for event in _events(folder / "cloud" / "events.jsonl", fleet, stop, page.look):
            if event["event"] == "round":
                page.wait(stop)
            if event["event"] in {"cannot_train", "unfit"}:  # the round would wait for it until it gives up
                raise EmoError(f"{event['node']} cannot train: {event['why']}")
            view.show(event)
    fleet.stop("devices", "edge-1", "edge-2")
    result = json.loads((folder / "cloud" / "result.json").read_text())
    report = _figures(args, folder, result, names)
    report["broker"] = broker.kind
    report["run"] = str(_keep(folder / "cloud", out / "run"))
    url = _serve(fleet, out / "models", port, stop)
    report["prediction"] = _predict(result, out, url)
    report["seconds"] = round(time.monotonic() - started, 1)
    show_report(report, args)
    figures.write(args.json, report)
    if args.keep:
        beside = f", and the page at {page.url}," if fleet.runs(WATCH) else ""
        print(f"the endpoint stays at {url}{beside} until Ctrl-C", flush=True)
        while not stop.wait(0.5):
            fleet.check()
    watched = folder / WATCH if fleet.runs(WATCH) else None  # or its record ends before the run
    fleet.stop(WATCH)
    _keep_events(folder / "cloud", watched, out / "run")


def _with_defaults(args: argparse.Namespace) -> argparse.Namespace:
    values = vars(args).copy()
    model, rounds = _DEFAULTS.get(args.dataset, ("cnn", 20))
    values["model"] = args.model or model
    values["rounds"] = rounds if args.rounds is None else args.rounds
    if values["devices"] < 2:
        raise ConfigError("--devices: two edges need two devices at least")
    if not 0 <= args.page_port < 1 << 16:
        raise ConfigError(f"--page-port {args.page_port}: a port is a number from 0 (any free one) to 65535")
    if args.no_page and (args.open or args.page_port):
        raise ConfigError("--no-page leaves out the page that --open and --page-port are for")
    if values["data_dir"] is not None:
        values["data_dir"] = values["data_dir"].resolve()
    return argparse.Namespace(**values)


def _write(args: argparse.Namespace, folder: Path, out: Path, broker: dict[str, Any], port: int) -> list[str]:
    """The configuration files of every process; returns the devices' names. `port`: where the endpoint will be. Raises
    DataError."""
    source = {"name": args.dataset, "dir": args.data_dir and str(args.data_dir), "seed": args.seed}
    train, test = registry.load(Data.model_validate(source))
    if args.devices > len(train.labels):
        raise ConfigError(f"--devices {args.devices}: there are only {len(train.labels)} training samples to share")
    names = [f"device-{index:02d}" for index in range(args.devices)]
    first = max(1, round(0.4 * args.devices))  # the paper's 40 and 60 %
    groups = {"edge-1": names[:first], "edge-2": names[first:]}
    shared = {
        "wan": broker,
        "model": {
            "name": args.model,
            "width": args.width,
            "norm": args.norm,
            "input": list(test.images.shape[1:]),
            "classes": len(test.classes),
        },
    }
    files: dict[str, dict[str, Any]] = {}
    files["cloud"] = {
        **shared,
        "data": source,
        "rounds": {
            "rounds": args.rounds,
            "per_round": args.per_round or min(args.devices, 10),
            "min_devices": args.devices,
            "seed": args.seed,
        },
        "training": {"epochs": args.epochs, "lr": args.lr},
        "overlays": {"edges": list(groups)},
        "export": {"models": str(out / "models"), "name": "emo"},
    }
    for number, (edge, members) in enumerate(groups.items()):
        files[edge] = {
            **shared,
            "lan": broker,
            "devices": members,
            "cache": {"dir": str(folder / edge / "cache")},
            "overlay": {"replay_ratio": args.replay_ratio, "seed": args.seed + number},
        }
        for name in members:
            index = names.index(name)
            files[name] = {
                **shared,
                "lan": broker,
                "edge": edge,
                "data": source,
                "tap": {"codec": args.codec},
                "partition": {
                    "devices": args.devices,
                    "index": index,
                    "alpha": args.alpha,
                    "seed": args.seed,
                },
            }
    files[WATCH] = {
        "wan": broker,
        "port": args.page_port,
        "endpoint": {"url": f"http://127.0.0.1:{port}", "name": "emo"},
    }
    for name, values in files.items():
        values |= {"id": name, "state_dir": str(folder / name)}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return names


def _events(path: Path, fleet: Fleet, stop: threading.Event, turn: Callable[[], None]) -> Iterator[dict[str, Any]]:
    """The cloud's events as they are written, until it has ended; meanwhile, ten times a second, `turn`."""
    at, ended = 0, False
    while True:
        ended = not fleet.runs("cloud")  # before the last read, or its last lines would be missed
        if path.exists():
            with path.open(encoding="utf-8") as file:
                file.seek(at)
                while (line := file.readline()).endswith("\n"):
                    at = file.tell()
                    yield json.loads(line)
        fleet.check()
        turn()
        if ended:
            return
        if stop.wait(0.1):
            raise Interrupted


def _figures(args: argparse.Namespace, folder: Path, result: dict[str, Any], names: list[str]) -> dict[str, Any]:
    counts = [json.loads((folder / name / "metrics.json").read_text()) for name in names]

    def total(*keys: str) -> int:
        return sum(count.get(key, 0) for count in counts for key in keys)

    edges = result["edges"].values()
    return {
        "accuracy": result["accuracy"],
        "instead": result["instead"],
        "bytes": {
            "fl": total(*traffic.of_device("fl")),
            "activations": total(*traffic.of_device("activations")),
            "sfl_equivalent": result["sfl_bytes"],
        },
        "sent_fraction": round(
            sum(edge["sent"] for edge in edges) / max(1, sum(edge["attempted"] for edge in edges)), 4
        ),
        "overlay_steps": sum(edge["steps"] for edge in edges),
        "rounds": result["rounds"],
        "onnx": result["onnx"],
        "options": {key: getattr(args, key) for key in ("dataset", "model", "width", "devices", "alpha", "seed")},
    }


def _keep(state: Path, kept: Path) -> Path:
    """What `emo export --run` needs of the cloud's folder, which does not outlive the demo."""
    kept.mkdir(exist_ok=True)
    for name in ("weights.safetensors", "run.json"):  # in run_archive.write's order
        shutil.copyfile(state / name, kept / name)
    return kept


def _keep_events(state: Path, watched: Path | None, kept: Path) -> None:
    """What `emo watch --run` shows of this run and no other: the cloud's events, and all that was seen, where there is that."""
    sources = [(state, "events.1.jsonl"), (state, "events.jsonl"), (state, "result.json")]
    for name in (record.BEFORE, record.NAME):
        (kept / name).unlink(missing_ok=True)
        sources += [] if watched is None else [(watched, name)]
    for folder, name in sources:
        if (folder / name).exists():
            shutil.copyfile(folder / name, kept / name)


def _serve(fleet: Fleet, models: Path, port: int, stop: threading.Event) -> str:
    fleet.start("endpoint", "serve", "--models", str(models), "--port", str(port))
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        if url := serving_at(fleet.log("endpoint")):
            return url
        fleet.check()
        if stop.wait(0.1):
            raise Interrupted
    raise EmoError(f"the endpoint did not start within {_START_S:.0f} s")


def _predict(result: dict[str, Any], out: Path, url: str) -> dict[str, Any] | None:
    """One request by the sample image; None for data that is no image."""
    if result["sample"] is None:
        return None
    image = out / "sample.png"
    shutil.copyfile(result["sample"]["image"], image)
    label, probability = predict(url, "emo", image).labels[0]
    return {
        "image": str(image),
        "label": label,
        "probability": round(probability, 4),
        "truth": result["sample"]["truth"],
        "command": f"emo predict {shlex.quote(os.path.relpath(image))} --url {url}",
    }
