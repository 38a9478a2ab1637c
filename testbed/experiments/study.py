"""What studies of overlays share: their options, recordings made once, arms run side by side, and their table."""

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from emo.config import Model
from emo.errors import ConfigError
from testbed import figures
from testbed.experiments import arm as arms
from testbed.experiments import trace

Row = dict[str, Any]
Rows = list[Row]


def parser(doc: str, default: Sequence[str], syntax: str) -> argparse.ArgumentParser:
    """With the options of every study; `default` arms, written as `syntax`."""
    parser = figures.parser(
        doc,
        dataset="cifar10",
        data_dir=None,
        model="vgg6",
        norm="group",
        width=0.25,
        rounds=60,
        devices=100,
        per_round=20,
        alpha=5.0,
        lr=0.01,
        seeds=[0],
        workers=1,
        plot=None,
    )
    option = parser.add_argument
    option("--arms", nargs="*", default=list(default), metavar=syntax, help="what is compared")
    option("--every", type=int, default=10, help="rounds between two measurements")
    option(
        "--work",
        type=Path,
        help="keep recordings and rows here, for the next call: 2.5 GB a seed with these settings (default: not kept)",
    )
    return parser


def main(
    name: str,
    args: argparse.Namespace,
    read: Callable[[str, argparse.Namespace], arms.Arm],
    show: Callable[[Rows, argparse.Namespace], None],
) -> int:
    """Runs the arms that `read` makes of their names; `show` gets all rows. The exit status."""

    @figures.command(name)
    def run() -> int:
        chosen = [_arm(each, args, read) for each in args.arms]
        with tempfile.TemporaryDirectory(prefix=f"emo-{name}-") as work:
            rows = _run(args, chosen, args.work or Path(work))
        figures.write(args.json, rows)
        show(rows, args)
        return 0

    return run()


def _arm(name: str, args: argparse.Namespace, read: Callable[[str, argparse.Namespace], arms.Arm]) -> arms.Arm:
    try:
        return read(name, args)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ConfigError(f"--arms {name}: {wrong['loc'][0]}: {wrong['msg']}") from error


def table(rows: Rows, name: Callable[[Row], str], rounds: int, columns: Mapping[str, Callable[[Rows], str]]) -> None:
    """A line an arm, which `name` tells apart, after the last round: `columns`, each out of the rows of its seeds, then the
    ensemble's accuracy and the FL model's."""
    heads = "".join(f" {head:>15}" for head in (*columns, "bagged %", "FL %"))
    print(f"{'arm':28} {'seeds':>5}{heads}")
    last = [row for row in rows if row["round"] == rounds]
    for arm in dict.fromkeys(map(name, last)):
        mine = [row for row in last if name(row) == arm]
        bagged = [row["accuracy_bagged"] for row in mine]
        accuracy = f"{statistics.fmean(bagged):.2f} ± {figures.spread(bagged):4.2f}"
        cells = [column(mine) for column in columns.values()]
        cells += [accuracy, f"{figures.mean(mine, 'accuracy_fl'):.2f}"]
        print(f"{arm:28} {len(mine):5}" + "".join(f" {cell:>15}" for cell in cells))


def _run(args: argparse.Namespace, chosen: list[arms.Arm], work: Path) -> Rows:
    plans = [(options(args, seed), work / f"seed-{seed}") for seed in args.seeds]
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
    return sorted(rows, key=lambda row: (arms.title(row), row["codec"], row["sampling"], row["seed"], row["round"]))


def options(args: argparse.Namespace, seed: int) -> trace.Options:
    """The federated run that the options of `figures.parser` ask for. Raises DataError."""
    spec = Model(name=args.model, width=args.width, norm=args.norm)
    asked = trace.Options(
        args.dataset,
        args.data_dir and str(args.data_dir),
        spec,
        devices=args.devices,
        per_round=args.per_round,
        alpha=args.alpha,
        lr=args.lr,
        seed=seed,
    )
    training, _ = asked.load()
    shape = {"input": training.images.shape[1:], "classes": len(training.classes)}
    return replace(asked, model=Model.model_validate({**spec.model_dump(), **shape}))


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
