"""`emo demo`."""

import argparse
import threading
from pathlib import Path

from emo.config import CODECS
from emo.extras import needs
from emo.parser import GRACEFUL, Commands


def register(commands: Commands) -> None:
    text = "all three tiers on this machine, with a broker of its own"
    option = commands.add("demo", _demo, text, "demo", GRACEFUL).add_argument
    option("--dataset", default="digits", help="digits, cifar10, cifar100, folder or package.module:function")
    option("--data-dir", type=Path, help="where the dataset lies (default: none; digits needs none)")
    option("--model", help="cnn, vgg6, mobilenet6, ... or package.module:function (default: by dataset)")
    option("--width", type=float, default=1.0, help="width multiplier of the networks")
    option("--norm", choices=["group", "batch", "none"], default="group", help="how the networks normalise")
    option("--devices", type=int, default=10, help="how many; the first edge has 40 %% of them")
    option("--per-round", type=int, help="devices sampled a round (default: all, 10 at most)")
    option("--rounds", type=int, help="FL rounds (default: by dataset)")
    option("--epochs", type=int, default=1, help="local epochs a round")
    option("--lr", type=float, default=0.05, help="the devices' learning rate")
    option("--alpha", type=float, default=1.0, help="Dirichlet(alpha x prior): smaller is less alike")
    option("--replay-ratio", type=float, default=4.0, help="batches replayed per batch offered")
    option("--codec", choices=CODECS, default="int2-delta", help="how activations are written on the wire")
    option("--seed", type=int, default=0, help="of data, weights and sampling; the same seed, the same run")
    option("--out", type=Path, default=Path("runs/demo"), help="model repository and sample image go here")
    option("--json", type=Path, metavar="FILE", help="write the figures to FILE (default: no file)")
    option("--keep", action="store_true", help="leave the endpoint and the page running until Ctrl-C")
    option(
        "--page-port", type=int, default=0, metavar="N", help="where the page listens on 127.0.0.1; 0: any free port"
    )
    option("--no-page", action="store_true", help="without the page that shows the run (emo watch)")
    option("--open", action="store_true", help="show the page in the browser")
    option(
        "--broker",
        choices=["mosquitto", "amqtt"],
        help="which broker (default: mosquitto where it is installed, else amqtt)",
    )


def _demo(args: argparse.Namespace, stop: threading.Event) -> int:
    with needs("demo"):
        from testbed.demo.run import run
    return run(args, stop)
