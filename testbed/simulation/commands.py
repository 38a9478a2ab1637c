"""`emo simulate`, `emo compare`, and `emo doctor --profile`, which measures a machine for a scenario."""

import argparse
import json
import threading
from pathlib import Path

from emo.config import CODECS
from emo.extras import needs
from emo.parser import Commands


def register(commands: Commands) -> None:
    text = "a method of the paper without a fleet: virtual time, real bytes"
    _simulate_options(commands.add("simulate", _simulate, text, "demo"))

    text = "simulated runs beside each other: a table, and plots of them"
    compare = commands.add("compare", _compare, text, "study")
    compare.add_argument("runs", type=Path, nargs="+", metavar="DIR", help="folders of `emo simulate --out`")
    compare.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write the table and the plots here (default: only print the table)",
    )
    compare.add_argument("--format", choices=["svg", "png"], default="svg", help="of the plots")
    compare.add_argument("--json", action="store_true", help="print the rows as JSON in the table's place")

    commands["doctor"].add_argument(
        "--profile",
        dest="run",
        action="store_const",
        const=_profile,
        help="measure how fast this machine trains instead, as a device class for a scenario file",
    )


def _simulate(args: argparse.Namespace, stop: threading.Event) -> int:
    with needs("demo"):
        from testbed.simulation.simulate import run
    return run(args, stop)


def _compare(args: argparse.Namespace, _stop: threading.Event) -> int:
    with needs("study"):
        from testbed.simulation.compare import run
    return run(args)


def _profile(args: argparse.Namespace, _stop: threading.Event) -> int:
    with needs("device"):
        from testbed.timing import profile
    measured = profile.measure()
    print(json.dumps(measured) if args.json else profile.text(measured))
    return 0


def _simulate_options(parser: argparse.ArgumentParser) -> None:
    """No defaults here but those of no plan: with --resume, what is not given is what the run has. So each help names
    the plan's own."""
    parser.epilog = "EMO_* variables set what has no option here, as EMO_OVERLAY__LR=0.02; keys as in the edge's file."
    add = parser.add_argument
    add(
        "--method",
        help="fl-small, fl-large, sfl-cloud, sfl-edge or emo (default: none; must be given, but for --resume)",
    )
    add("--dataset", help="digits, cifar10, cifar100, folder or package.module:function (default: digits)")
    add(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where the dataset lies (default: none; digits needs none)",
    )
    add("--model", help="cnn, vgg6, mobilenet6, ... or package.module:function (default: by dataset)")
    add("--width", type=float, help="width multiplier of the networks (default: 1)")
    add("--norm", choices=["group", "batch", "none"], help="how the networks normalise (default: group)")
    add("--rounds", type=int, help="FL rounds (default: 60)")
    add("--devices", type=int, help="how many (default: 100)")
    add("--per-round", type=int, help="devices sampled a round (default: 20)")
    add("--samples", type=int, help="of each device (default: the dataset is dealt out whole)")
    add("--batch-size", type=int, help="samples a batch (default: 16)")
    add("--epochs", type=int, help="local epochs a round (default: 1)")
    add("--lr", type=float, help="the devices' learning rate (default: 0.01)")
    add(
        "--scheme",
        choices=["iid", "dirichlet", "shards"],
        help="how samples are dealt out (default: dirichlet)",
    )
    add("--alpha", type=float, help="Dirichlet(alpha x prior): smaller is less alike (default: 5)")
    add(
        "--edges",
        type=float,
        nargs="+",
        metavar="SHARE",
        help="each edge's share of the devices (default: 0.4 0.6)",
    )
    add("--codec", choices=CODECS, help="emo: how activations are written on the wire (default: int2-delta)")
    add(
        "--policy",
        help="emo: when a batch is sent again: svcca, cka, always, once, fixed(n) (default: svcca)",
    )
    add("--fresh-rounds", type=int, help="emo: last rounds in which every batch is sent (default: 0)")
    add("--replay-ratio", type=float, help="emo: batches replayed per batch offered (default: 4)")
    add("--evaluate-every", type=int, metavar="ROUNDS", help="how often accuracy is measured (default: 5)")
    add("--seed", type=int, help="of data, weights and sampling; the same seed, the same bits (default: 0)")
    add(
        "--scenario",
        type=Path,
        metavar="FILE",
        help="machines and links, YAML (default: the paper's testbed)",
    )
    add("--workers", type=int, help="processes; the result is the same with any number (default: all cores)")
    add("--device", choices=["cpu", "cuda"], help="on which the nets train (default: cpu)")
    add("--out", type=Path, metavar="DIR", help="the run's folder (default: runs/METHOD-DATASET-SEED)")
    add("--checkpoint", type=int, default=10, metavar="ROUNDS", help="rounds between two checkpoints")
    add("--resume", action="store_true", help="go on with the run in --out, to the same bits")
    add("--export", type=Path, metavar="FILE", help="write the served ensemble as ONNX (default: no file)")
    add("--json", action="store_true", help="print a JSON line for each round, then one for the result")
