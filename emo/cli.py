"""The composition root: `emo ...`. Imports a tier only inside its own command, so a device needs no onnx."""

import argparse
import contextlib
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from emo import __version__, config
from emo.codec import CODECS
from emo.errors import ConfigError, EmoError, nearest
from emo.runner import stop_on


def main(argv: Sequence[str] | None = None) -> int:
    """0: done. 1: a check failed. 2: bad input, said in one line. 130: interrupted."""
    args = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if args.verbose else logging.INFO,
        format="%(asctime)s %(levelname).1s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    logging.getLogger("emo").setLevel(logging.DEBUG if args.verbose else logging.INFO)
    stop = threading.Event()
    if args.command != "serve":  # the endpoint drains by itself
        stop_on(stop, signal.SIGTERM)
    try:
        code: int = args.run(args, stop)
    except EmoError as error:
        for line in str(error).splitlines():
            print(f"emo {args.command}: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def _device(args: argparse.Namespace, stop: threading.Event) -> int:
    configs = [config.load(config.DeviceConfig, path) for path in args.config]
    stop_on(stop, signal.SIGINT)  # a tier says goodbye on Ctrl-C as on SIGTERM
    with _needs("device"):
        from device_app.__main__ import run
    run(configs, stop, args.parallel)
    return 0


def _edge(args: argparse.Namespace, stop: threading.Event) -> int:
    if args.config is None:
        raise ConfigError("which edge? Say --config FILE; `emo init DIR` writes examples.")
    settings = config.load(config.EdgeConfig, args.config)
    stop_on(stop, signal.SIGINT)  # a tier says goodbye on Ctrl-C as on SIGTERM
    with _needs("edge"):
        from edge_app.__main__ import run
    run(settings, stop)
    return 0


def _intervals(args: argparse.Namespace, _stop: threading.Event) -> int:
    settings = config.load(config.EdgeConfig, args.config)
    if args.device is not None and args.device not in settings.devices:
        raise ConfigError(
            f"{args.config}: no device {args.device!r} in devices; {nearest(args.device, settings.devices)}"
        )
    with _needs("edge"):
        from edge_app import table
    run, rows = table.read(settings.cache.dir)
    rows = [row for row in rows if args.device in (None, row[0].device)]
    cap = min(settings.controller.max_interval, settings.controller.max_age)
    if not args.json:
        print(table.text(run, rows, cap, time.time()))
        return 0
    mean, capped = table.summary(rows, cap)
    found = {"edge": settings.id, "run": run, "mean_interval": mean, "share_at_cap": capped, "cap": cap}
    print(json.dumps({**found, "rows": [table.as_json(*row) for row in rows]}))
    return 0


def _cloud(args: argparse.Namespace, stop: threading.Event) -> int:
    settings = config.load(config.CloudConfig, args.config)
    stop_on(stop, signal.SIGINT)  # a tier says goodbye on Ctrl-C as on SIGTERM
    with _needs("cloud"):
        from cloud_app.__main__ import run
    result = run(settings, stop)
    if result is not None and args.json:
        print(json.dumps(result))
    return 0 if result is not None else 130


def _serve(args: argparse.Namespace, _stop: threading.Event) -> int:
    with _needs("serve"):
        from cloud_app.endpoint import serve
    serve(args.models, args.host, args.port, args.threads)
    return 0


def _predict(args: argparse.Namespace, _stop: threading.Event) -> int:
    with _needs("serve"):
        from cloud_app.predict import predict
    found = predict(args.url, args.name, args.image)
    if args.json:
        print(json.dumps([{"label": label, "probability": probability} for label, probability in found]))
    else:
        for label, probability in found[: args.top]:
            print(f"{probability:7.2%}  {label}")
    return 0


def _demo(args: argparse.Namespace, stop: threading.Event) -> int:
    stop_on(stop, signal.SIGINT)  # a tier says goodbye on Ctrl-C as on SIGTERM
    with _needs("demo"):
        from testbed.demo import run
    return run(args, stop)


def _doctor(args: argparse.Namespace, _stop: threading.Event) -> int:
    from emo import doctor

    return doctor.run(args.config, args.json)


def _init(args: argparse.Namespace, _stop: threading.Event) -> int:
    from emo import init

    init.init(args.folder)
    return 0


@contextlib.contextmanager
def _needs(extra: str) -> Iterator[None]:
    """Around the import of a tier. Raises EmoError that names the extra when a package of it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise EmoError(f"{error.name} is not installed here: pip install 'emo-overlays[{extra}]'") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="emo", description="Edge model overlays beside federated learning.")
    parser.add_argument("--version", action="version", version=f"emo {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log connections too")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: object, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    demo = add("demo", _demo, "all three tiers on this machine, with a broker of its own")
    demo.add_argument(
        "--dataset", default="digits", help="digits, cifar10, cifar100, folder or package.module:function"
    )
    demo.add_argument("--data-dir", type=Path, help="where the dataset lies (digits needs none)")
    demo.add_argument(
        "--model", help="cnn, vgg6, mobilenet6, ... or package.module:function (default: by dataset)"
    )
    demo.add_argument("--width", type=float, default=1.0, help="width multiplier of the networks (1.0)")
    demo.add_argument("--norm", choices=["group", "batch", "none"], default="group")
    demo.add_argument(
        "--devices", type=int, default=10, help="how many; the first edge has 40 %% of them (10)"
    )
    demo.add_argument("--per-round", type=int, help="devices sampled a round (10 at most)")
    demo.add_argument("--rounds", type=int, help="FL rounds (by dataset)")
    demo.add_argument("--epochs", type=int, default=1, help="local epochs a round (1)")
    demo.add_argument("--lr", type=float, default=0.05, help="the devices' learning rate (0.05)")
    demo.add_argument(
        "--alpha", type=float, default=1.0, help="Dirichlet(alpha x prior): smaller is less alike (1)"
    )
    demo.add_argument(
        "--replay-ratio", type=float, default=4.0, help="batches replayed per batch offered (4)"
    )
    demo.add_argument("--codec", choices=CODECS, default="int2-delta", help="of activations (int2-delta)")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="model repository and sample image go here"
    )
    demo.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    demo.add_argument("--keep", action="store_true", help="leave the endpoint running until Ctrl-C")
    demo.add_argument(
        "--broker", choices=["mosquitto", "amqtt"], help="which broker (Mosquitto where installed)"
    )

    device = add("device", _device, "run one device, or several in one process")
    device.add_argument(
        "--config", type=Path, nargs="+", required=True, metavar="FILE", help="one file a device"
    )
    device.add_argument(
        "--parallel", type=int, default=1, help="devices of this process that train at once (1)"
    )
    edge = add("edge", _edge, "run an edge")
    edge.add_argument("--config", type=Path, metavar="FILE")  # required too, but not before a subcommand
    text = "the table of an edge, running or not: when each batch comes again"
    intervals = edge.add_subparsers(metavar="[intervals]").add_parser(
        "intervals", help=text, description=text
    )
    intervals.set_defaults(run=_intervals)
    intervals.add_argument("--config", type=Path, required=True, metavar="FILE", help="the edge's own")
    intervals.add_argument("--device", metavar="ID", help="only this device's batches")
    intervals.add_argument("--json", action="store_true")

    cloud = add("cloud", _cloud, "run the cloud")
    cloud.add_argument("--config", type=Path, required=True, metavar="FILE")
    cloud.add_argument("--json", action="store_true", help="print the result as one JSON line")

    serve = add("serve", _serve, "serve a model repository (Open Inference Protocol v2)")
    serve.add_argument("--models", type=Path, required=True, metavar="DIR")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8000, help="0: any free one (8000)")
    serve.add_argument("--threads", type=int, help="onnxruntime's threads (the cores of this container)")

    predict = add("predict", _predict, "ask an endpoint what is on an image")
    predict.add_argument("image", type=Path)
    predict.add_argument("--url", default="http://127.0.0.1:8000")
    predict.add_argument("--name", default="emo", help="the model's name (emo)")
    predict.add_argument("--top", type=int, default=3, help="labels to print (3)")
    predict.add_argument("--json", action="store_true")

    doctor = add("doctor", _doctor, "check this machine, a configuration and its brokers; say what to do")
    doctor.add_argument("--config", type=Path, metavar="FILE")
    doctor.add_argument("--json", action="store_true")

    init = add("init", _init, "write commented example configurations that run as they are")
    init.add_argument("folder", type=Path, metavar="DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
