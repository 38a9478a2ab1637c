"""What studies of overlays share: their options, recordings made once, and arms run side by side.

Knows command lines, processes and rows. Knows no table and no plot.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from emo.config import Model
from emo.parser import Parser
from testbed.experiments import arm as arms
from testbed.experiments import trace
from testbed.experiments.command import command

Rows = list[dict[str, Any]]


def parser(description: str, default: Sequence[str], syntax: str) -> argparse.ArgumentParser:
    """With the options of every study; `default` arms, written as `syntax`."""
    parser = Parser(description=description)
    parser.add_argument("--dataset", default="cifar10", help="digits, cifar10, ...")
    parser.add_argument("--data-dir", help="where the dataset lies (default: none; digits needs none)")
    parser.add_argument("--model", default="vgg6", help="cnn, vgg6, mobilenet6, ...")
    parser.add_argument("--width", type=float, default=0.25, help="width multiplier of the network")
    parser.add_argument("--rounds", type=int, default=60, help="FL rounds")
    parser.add_argument("--devices", type=int, default=100, help="how many")
    parser.add_argument("--per-round", type=int, default=20, help="devices sampled a round")
    parser.add_argument(
        "--alpha", type=float, default=5.0, help="Dirichlet, as Hsu's; 5 is Dir(0.5) for 10 classes"
    )
    parser.add_argument("--lr", type=float, default=0.01, help="the devices' learning rate")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each is a run")
    parser.add_argument("--arms", nargs="*", default=list(default), metavar=syntax, help="what is compared")
    parser.add_argument("--every", type=int, default=10, help="rounds between two measurements")
    parser.add_argument("--workers", type=int, default=1, help="processes, one thread each")
    parser.add_argument(
        "--work",
        type=Path,
        help="keep recordings and rows here, for the next call: 2.5 GB a seed with these settings (default: not kept)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write every row to FILE (default: no file)"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="as .svg or .png (default: no plot)")
    return parser


def main(
    name: str,
    args: argparse.Namespace,
    read: Callable[[str, argparse.Namespace], arms.Arm],
    show: Callable[[Rows, argparse.Namespace], None],
) -> int:
    """Runs the arms that `read` makes of their names; `show` gets all rows. The exit status."""

    @command(name)
    def run() -> int:
        chosen = [read(each, args) for each in args.arms]
        if args.work is not None:
            rows = _run(args, chosen, args.work)
        else:
            with tempfile.TemporaryDirectory(prefix=f"emo-{name}-") as work:
                rows = _run(args, chosen, Path(work))
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1))
        show(rows, args)
        return 0

    return run()


def _run(args: argparse.Namespace, chosen: list[arms.Arm], work: Path) -> Rows:
    plans = [(_options(args, seed), work / f"seed-{seed}") for seed in args.seeds]
    rows: Rows = []
    with ProcessPoolExecutor(args.workers, get_context("spawn"), _stay_with, (os.getpid(),)) as pool:
        try:
            for done in as_completed([pool.submit(_record, folder, o, args.rounds) for o, folder in plans]):
                done.result()
            jobs = [
                pool.submit(arms.run, arm, options, folder, args.rounds, args.every, _say)
                for options, folder in plans
                for arm in chosen
            ]
            for job in as_completed(jobs):
                rows += job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return sorted(
        rows, key=lambda row: (arms.title(row), row["codec"], row["sampling"], row["seed"], row["round"])
    )


def _options(args: argparse.Namespace, seed: int) -> trace.Options:
    bare = trace.Options(args.dataset, args.data_dir, Model(name=args.model))
    training, _ = bare.load()
    spec = Model(
        name=args.model, width=args.width, input=training.images.shape[1:], classes=len(training.classes)
    )
    return trace.Options(
        args.dataset,
        args.data_dir,
        spec,
        devices=args.devices,
        per_round=args.per_round,
        alpha=args.alpha,
        lr=args.lr,
        seed=seed,
    )


def _stay_with(parent: int) -> None:
    """In a worker: end when the one who asked is gone, also by kill -9."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _record(folder: Path, options: trace.Options, rounds: int) -> None:
    torch.set_num_threads(1)
    trace.record(folder, options, rounds, _say)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
