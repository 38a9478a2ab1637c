"""What recipes over whole runs share: the plans of a scale, and the runs, side by side over seeds.

Knows the paper's setting and folders of runs. Knows no table and no plot.

`small` is for two cores: a quarter of the width, ROUNDS rounds of PER_ROUND devices.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from emo.parser import Parser
from testbed.experiments import paper
from testbed.experiments.command import command
from testbed.plan import METHODS, MethodName, Plan
from testbed.simulation import run as simulate
from testbed.simulation.run_folder import Run
from testbed.timing import scenario

WIDTH, ROUNDS, PER_ROUND = 0.25, 30, 10


def parser(description: str, methods: Sequence[MethodName]) -> argparse.ArgumentParser:
    parser = Parser(
        description=description, epilog="Runs kept with --work serve every recipe and `emo compare`."
    )
    parser.add_argument("--data-dir", type=Path, required=True, metavar="DIR", help="CIFAR lies there")
    parser.add_argument("--datasets", nargs="+", choices=paper.DATASETS, default=["cifar10"], help="on which")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(methods), help="of the paper")
    parser.add_argument("--scale", choices=["small", "paper"], default="small", help="paper: for a GPU")
    parser.add_argument("--rounds", type=int, help=f"FL rounds (default: {ROUNDS}; paper: 200)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="each is a run")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where the networks train")
    parser.add_argument("--scenario", type=Path, metavar="FILE", help="YAML (default: the paper's testbed)")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="keep the runs here, or go on with them (default: not kept)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE (default: no file)")
    return parser


def plan(args: argparse.Namespace, dataset: str, method: MethodName, seed: int) -> Plan:
    full = paper.plan(dataset, method, args.data_dir, seed)
    change: dict[str, object] = {"rounds": args.rounds or full.rounds}
    if args.scale == "small":
        change = {"rounds": args.rounds or ROUNDS, "per_round": PER_ROUND}
        # Group norm: batch norm's statistics of ten devices whose labels differ do not fit the mean of their weights.
        change["model"] = full.model.model_copy(update={"width": WIDTH, "norm": "group"})
    return full.model_copy(update=change)


def main(name: str, args: argparse.Namespace, show: Callable[[list[Run], argparse.Namespace], None]) -> int:
    """Runs everything; `show` gets the runs, by dataset, method and seed. The exit status."""

    @command(name)
    def run() -> int:
        with tempfile.TemporaryDirectory(prefix=f"emo-{name}-") as folder:
            show(_run(args, args.work or Path(folder)), args)
        return 0

    return run()


def _run(args: argparse.Namespace, work: Path) -> list[Run]:
    machines = scenario.load(args.scenario)
    found = []
    for dataset in args.datasets:
        for seed in args.seeds:
            for method in args.methods:
                out = work / f"{args.scale}-{dataset}-{method}-{seed}"
                simulate.say(f"{dataset}, {method}, seed {seed}")
                done = simulate.run(
                    plan(args, dataset, method, seed),
                    machines,
                    out,
                    workers=args.workers,
                    device=args.device,
                    resume=True,
                )
                assert done is not None  # nobody stops it but Ctrl-C
                found.append(done)
    return found
