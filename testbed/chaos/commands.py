"""`emo chaos`."""

import argparse
import threading
from pathlib import Path

from emo.errors import ConfigError
from emo.extras import needs
from emo.parser import GRACEFUL, Commands


def register(commands: Commands) -> None:
    text = "a fleet on this machine under faults: does the run still end right?"
    option = commands.add("chaos", _chaos, text, "demo", GRACEFUL).add_argument
    option("--seed", type=int, default=1, help="of the first schedule; the same seed, the same schedule")
    option("--seeds", type=int, default=1, help="so many runs, with this seed and those after it")
    option("--faults", type=int, default=50, help="of each run")
    option("--hostile", type=int, default=0, help="beside them, so many acts of a hostile device and edge")
    option("--rounds", type=int, default=12, help="FL rounds of each run; every third seed has a third")
    option(
        "--over",
        type=float,
        metavar="S",
        help="seconds that the faults are spread over (default: two a second)",
    )
    option(
        "--soak",
        type=float,
        metavar="MINUTES",
        help="instead: no faults, for so long: does any process grow? (default: faults)",
    )
    option(
        "--out",
        type=Path,
        metavar="DIR",
        help="what a run wrote goes here if it broke a rule (default: nowhere)",
    )
    option("--keep", action="store_true", help="and if it did not")
    option(
        "--json",
        type=Path,
        metavar="FILE",
        help="write what came of it to FILE, after each run (default: no file)",
    )


def _chaos(args: argparse.Namespace, stop: threading.Event) -> int:
    if min(args.seed, args.faults, args.hostile) < 0 or min(args.seeds, args.rounds) < 1 or (args.over or 1.0) <= 0:
        raise ConfigError(
            "--seed, --faults and --hostile are 0 or more, --seeds and --rounds 1 or more, --over above 0"
        )
    if args.keep and args.out is None:
        raise ConfigError("--keep: where? Say --out DIR.")
    with needs("demo"):
        from testbed.chaos import run_seeds, soak
    return run_seeds.run(args, stop) if args.soak is None else soak.run(args, stop)
