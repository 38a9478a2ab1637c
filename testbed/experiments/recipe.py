"""What recipes over whole runs share: the plans of a scale, and the runs, side by side over seeds.

`small` is for two cores: a quarter of the width, ROUNDS rounds of PER_ROUND devices.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from testbed import figures
from testbed.experiments import paper
from testbed.plan import METHODS, MethodName, Plan
from testbed.simulation import run as simulate
from testbed.simulation.run_folder import Run
from testbed.timing import scenario

WIDTH, ROUNDS, PER_ROUND = 0.25, 30, 10


def parser(description: str, methods: Sequence[MethodName]) -> argparse.ArgumentParser:
    epilog = "Runs kept with --work serve every recipe and `emo compare`."
    parser = figures.parser(description, epilog, seeds=[0, 1, 2], workers=2, scenario=None)
    option = parser.add_argument
    option("--data-dir", type=Path, required=True, metavar="DIR", help="CIFAR lies there")
    option("--datasets", nargs="+", choices=paper.DATASETS, default=["cifar10"], help="on which")
    option("--methods", nargs="+", choices=METHODS, default=list(methods), help="of the paper")
    option("--scale", choices=["small", "paper"], default="small", help="paper: for a GPU")
    option("--rounds", type=int, help=f"FL rounds (default: {ROUNDS}; paper: 200)")
    option("--device", choices=["cpu", "cuda"], default="cpu", help="where the networks train")
    option("--work", type=Path, metavar="DIR", help="keep the runs here, or go on with them (default: not kept)")
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

    @figures.command(name)
    def run() -> int:
        with tempfile.TemporaryDirectory(prefix=f"emo-{name}-") as folder:
            show(_run(args, args.work or Path(folder)), args)
        return 0

    return run()


def _run(args: argparse.Namespace, work: Path) -> list[Run]:
    machines = scenario.load(args.scenario)
    runs = []
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
                runs.append(done)
    return runs
