"""The composition root: `emo ...`. Imports a tier only inside its own command, so a device needs no onnx."""

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from emo import (
    __version__,
    cli_chaos,
    cli_fleet,
    cli_ops,
    cli_pki,
    cli_selftest,
    cli_serve,
    cli_study,
    config,
    logs,
    terminal,
)
from emo.config import CODECS
from emo.config_file import load
from emo.errors import ConfigError, EmoError, ExportError, nearest
from emo.extras import needs as _needs
from emo.parser import Parser
from emo.runtime.runner import stop_on


def main(argv: Sequence[str] | None = None) -> int:
    """0: done. 1: a check failed. 2: bad input, said in one line. 130: interrupted. 141: nobody reads what is printed."""
    return terminal.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    args = _parser().parse_args(argv)
    logs.configure(args.verbose)
    stop = threading.Event()
    if args.command != "serve":  # the endpoint drains by itself
        stop_on(stop, signal.SIGTERM)
    try:
        code: int = args.run(args, stop)
    except EmoError as error:
        for line in str(error).splitlines():
            print(f"emo {args.command}: {logs.printable(line)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def _device(args: argparse.Namespace, stop: threading.Event) -> int:
    configs = [load(config.DeviceConfig, path) for path in args.config]
    stop_on(stop, signal.SIGINT)  # a tier says goodbye on Ctrl-C as on SIGTERM
    with _needs("device"):
        from device_app.run import run
    run(configs, stop, args.parallel)
    return 0


def _edge(args: argparse.Namespace, stop: threading.Event) -> int:
    if args.config is None:
        raise ConfigError("which edge? Say --config FILE; `emo init DIR` writes examples.")
    settings = load(config.EdgeConfig, args.config)
    stop_on(stop, signal.SIGINT)  # a tier says goodbye on Ctrl-C as on SIGTERM
    with _needs("edge"):
        from edge_app.run import run
    run(settings, stop)
    return 0


def _intervals(args: argparse.Namespace, _stop: threading.Event) -> int:
    settings = load(config.EdgeConfig, args.config)
    if args.device is not None and args.device not in settings.devices:
        raise ConfigError(
            f"{args.config}: no device {args.device!r} in devices; {nearest(args.device, settings.devices)}"
        )
    with _needs("edge"):
        from edge_app.intervals import log_file
    run, rows = log_file.read(settings.cache.dir)
    rows = [row for row in rows if args.device in (None, row[0].device)]
    cap = min(settings.controller.max_interval, settings.controller.max_age)
    if not args.json:
        print(log_file.text(run, rows, cap, time.time()))
        return 0
    mean, capped = log_file.summary(rows, cap)
    found = {"edge": settings.id, "run": run, "mean_interval": mean, "share_at_cap": capped, "cap": cap}
    print(json.dumps({**found, "rows": [log_file.as_json(*row) for row in rows]}))
    return 0


def _cloud(args: argparse.Namespace, stop: threading.Event) -> int:
    settings = load(config.CloudConfig, args.config)
    stop_on(stop, signal.SIGINT)  # a tier says goodbye on Ctrl-C as on SIGTERM
    with _needs("cloud"):
        from cloud_app.run import run
    result = run(settings, stop, args.new_run)
    if result is not None and args.json:
        print(json.dumps(result))
    return 0 if result is not None else 130


def _export(args: argparse.Namespace, _stop: threading.Event) -> int:
    with _needs("cloud"):
        from cloud_app.ensemble.member_choice import Choice
        from cloud_app.ensemble.publish import from_folder
    without = tuple(args.without)
    choice = Choice(args.combine, args.head, args.fit, args.int8, without, args.opset, args.at_least)

    def sure(text: str) -> None:
        if args.yes:
            return
        if sys.stdin.isatty():
            print(f"{text}. Serve it? [y/N] ", end="", file=sys.stderr, flush=True)
            if sys.stdin.readline().strip().lower() in {"y", "yes"}:
                return
        raise ExportError(f"{text}. Nothing was added; --yes adds it all the same")

    found = from_folder(args.folder, args.out, args.name, choice, args.data_dir, sure)
    accuracy = f"accuracy {found['accuracy']['served']:.2%}, members {', '.join(found['members'])}"
    print(json.dumps(found) if args.json else f"{found['onnx']}: {found['precision']}, {accuracy}")
    return 0


def _demo(args: argparse.Namespace, stop: threading.Event) -> int:
    stop_on(stop, signal.SIGINT)  # a tier says goodbye on Ctrl-C as on SIGTERM
    with _needs("demo"):
        from testbed.demo.run import run
    return run(args, stop)


def _doctor(args: argparse.Namespace, _stop: threading.Event) -> int:
    from emo.ops import doctor

    if args.profile:
        with _needs("device"):
            from testbed.timing import profile
        found = profile.measure()
        print(json.dumps(found) if args.json else profile.text(found))
        return 0
    return doctor.run(args.config, args.json)


def _init(args: argparse.Namespace, _stop: threading.Event) -> int:
    from emo.ops import example_configs

    example_configs.init(args.folder)
    return 0


def _parser() -> Parser:
    parser = Parser(prog="emo", description="Edge model overlays beside federated learning.")
    parser.add_argument("--version", action="version", version=f"emo {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log connections too")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: object, text: str) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    demo = add("demo", _demo, "all three tiers on this machine, with a broker of its own")
    demo.add_argument(
        "--dataset", default="digits", help="digits, cifar10, cifar100, folder or package.module:function"
    )
    demo.add_argument(
        "--data-dir", type=Path, help="where the dataset lies (default: none; digits needs none)"
    )
    demo.add_argument(
        "--model", help="cnn, vgg6, mobilenet6, ... or package.module:function (default: by dataset)"
    )
    demo.add_argument("--width", type=float, default=1.0, help="width multiplier of the networks")
    demo.add_argument(
        "--norm", choices=["group", "batch", "none"], default="group", help="how the networks normalise"
    )
    demo.add_argument("--devices", type=int, default=10, help="how many; the first edge has 40 %% of them")
    demo.add_argument("--per-round", type=int, help="devices sampled a round (default: all, 10 at most)")
    demo.add_argument("--rounds", type=int, help="FL rounds (default: by dataset)")
    demo.add_argument("--epochs", type=int, default=1, help="local epochs a round")
    demo.add_argument("--lr", type=float, default=0.05, help="the devices' learning rate")
    demo.add_argument(
        "--alpha", type=float, default=1.0, help="Dirichlet(alpha x prior): smaller is less alike"
    )
    demo.add_argument("--replay-ratio", type=float, default=4.0, help="batches replayed per batch offered")
    demo.add_argument(
        "--codec", choices=CODECS, default="int2-delta", help="how activations are written on the wire"
    )
    demo.add_argument(
        "--seed", type=int, default=0, help="of data, weights and sampling; the same seed, the same run"
    )
    demo.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="model repository and sample image go here"
    )
    demo.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures to FILE (default: no file)"
    )
    demo.add_argument("--keep", action="store_true", help="leave the endpoint running until Ctrl-C")
    demo.add_argument(
        "--broker",
        choices=["mosquitto", "amqtt"],
        help="which broker (default: mosquitto where it is installed, else amqtt)",
    )

    cli_study.commands(add)
    cli_ops.commands(add)
    cli_chaos.commands(add)

    device = add("device", _device, "run one device, or several in one process")
    device.add_argument(
        "--config", type=Path, nargs="+", required=True, metavar="FILE", help="one file a device"
    )
    device.add_argument("--parallel", type=int, default=1, help="devices of this process that train at once")
    edge = add("edge", _edge, "run an edge")
    # Required too, but not before a subcommand.
    edge.add_argument(
        "--config", type=Path, metavar="FILE", help="the edge's own (default: none; must be given)"
    )
    text = "the table of an edge, running or not: when each batch comes again"
    intervals = edge.add_subparsers(metavar="[intervals]").add_parser(
        "intervals", help=text, description=text
    )
    intervals.set_defaults(run=_intervals)
    intervals.add_argument("--config", type=Path, required=True, metavar="FILE", help="the edge's own")
    intervals.add_argument("--device", metavar="ID", help="only this device's batches (default: all)")
    intervals.add_argument("--json", action="store_true", help="print the table as one JSON object")

    cloud = add("cloud", _cloud, "run the cloud")
    cloud.add_argument("--config", type=Path, required=True, metavar="FILE", help="the cloud's own")
    cloud.add_argument("--json", action="store_true", help="print the result as one JSON line")
    cloud.add_argument(
        "--new-run", action="store_true", help="give up a run that was interrupted; else it goes on"
    )

    export = add(
        "export", _export, "make a served model of a run: of emo cloud's state_dir, or a simulated one"
    )
    export.add_argument(
        "--run",
        dest="folder",
        type=Path,
        required=True,
        metavar="DIR",
        help="a cloud's state_dir, or a simulation's --out",
    )
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="model repository")
    export.add_argument("--name", default="emo", help="the model's name there; it gets a new version")
    export.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="where the data lies (default: where the run had it)"
    )
    export.add_argument(
        "--combine",
        choices=["probabilities", "logits"],
        help="what is averaged (default: what the run was configured with)",
    )
    export.add_argument("--head", action="store_true", help="the FL model's own head is a member too")
    fits = ["none", "weights", "members", "both"]
    export.add_argument("--fit", choices=fits, default="none", help="what held-out data decides")
    export.add_argument(
        "--without", nargs="+", default=[], metavar="EDGE", help="leave these overlays out (default: none)"
    )
    export.add_argument("--opset", type=int, choices=range(18, 25), default=20, help="of ONNX")
    text = "an ensemble that is less accurate than the FL model alone is not exported: that is (none: it is)"
    export.add_argument("--at-least", choices=["head", "none"], default="head", help=text)
    export.add_argument("--yes", action="store_true", help="also if it is less accurate than what is served")
    export.add_argument("--int8", action="store_true", help="quantise, if faster and about as accurate")
    export.add_argument("--json", action="store_true", help="print the result as one JSON line")

    cli_serve.commands(add)
    cli_selftest.commands(add)
    cli_fleet.commands(add)
    cli_pki.commands(add)

    doctor = add("doctor", _doctor, "check this machine, a configuration and its brokers; say what to do")
    doctor.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="a node's configuration, and what it needs (default: this machine only)",
    )
    doctor.add_argument("--json", action="store_true", help="print the checks as one JSON object")
    doctor.add_argument(
        "--profile",
        action="store_true",
        help="measure how fast this machine trains instead, as a device class for a scenario file",
    )

    init = add("init", _init, "write commented example configurations that run as they are")
    init.add_argument("folder", type=Path, metavar="DIR", help="where they go; nothing there is overwritten")
    return parser


if __name__ == "__main__":
    sys.exit(main())
