"""How long a simulated round of federated averaging takes: ours, a plain PyTorch loop, and other simulators.

    python -m bench.simulate [--json FILE] [--peers] [--data-dir DIR]

VGG-6 at a quarter of its width, 100 devices of 500 samples, 20 a round, batch 16, SGD 0.01: CIFAR-10, or noise of its
shape. Seconds a round, the median; each takes its turn, several times over, and the first round of each is left out.
`plain_s`: one process, torch's own threads; `emo_s`: `--workers` processes of one thread. Ours also counts, encodes,
checks and decodes each model as a frame.

`--peers`: Flower's simulation, `--workers` clients at a time with one thread each (`flower_s`), and pfl-research, in one
process and with torchrun in `--workers` (`pfl_one_s`, `pfl_many_s`; `pfl_s` is the faster). Their pins are at odds with
ours, so they need an environment of their own: pip install -e '.[demo,peers]' there, without constraints.txt.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from emo.config import Data, Model
from emo.data import registry
from emo.data.dataset import Dataset
from emo.models import split_network
from testbed import figures, node_configs
from testbed.plan import Plan
from testbed.simulation import run as simulate
from testbed.timing import scenario

Turn = Callable[[], list[float]]


def main() -> None:
    args = parser().parse_args()
    training = dataset(args.data_dir)
    with contextlib.ExitStack() as stack:
        turns: dict[str, Turn] = {
            "plain_s": _stepped(Plain(plan(args.samples), training).round, args.rounds),
            "emo_s": _stepped(stack.enter_context(_ours(args, training)), args.rounds),
        }
        if args.peers:
            turns |= _peers(args)
        rounds: dict[str, list[float]] = {name: [] for name in turns}
        for turn in range(args.turns):
            for name, take in turns.items():
                rounds[name] += take()
                times = ", ".join(f"{seconds:.2f}" for seconds in rounds[name])
                print(f"turn {turn + 1}: {name[:-2]}: {times}", flush=True)
    medians = {name: statistics.median(times) for name, times in rounds.items()}
    if args.peers:
        medians["pfl_s"] = min(medians["pfl_one_s"], medians["pfl_many_s"])
    emo = medians["emo_s"]
    ratios = {f"ratio_{name[:-2]}": seconds / emo for name, seconds in medians.items() if name != "emo_s"}
    figures.show(medians | ratios)
    machine = {"workers": args.workers, "cores": os.cpu_count()}
    figures.write(args.json, {**machine, **medians, **ratios, "rounds": rounds})


def parser() -> argparse.ArgumentParser:
    parser = figures.parser(__doc__, workers=os.cpu_count(), turns=3)
    parser.add_argument("--samples", type=int, default=500, help="of a device; fewer for a trial")
    parser.add_argument("--rounds", type=int, default=2, help="measured a turn")
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="CIFAR-10 lies there (default: noise of its shape)"
    )
    parser.add_argument("--peers", action="store_true", help="Flower and pfl-research too")
    return parser


def plan(samples: int) -> Plan:
    return Plan(
        method="fl-small",
        data=Data(name="cifar10"),
        model=Model(name="vgg6", width=0.25, input=(3, 32, 32), classes=10),
        samples=samples,
        rounds=10_000,
    )


def dataset(folder: Path | None) -> Dataset:
    """The training set. Raises DataError where `folder` lacks CIFAR-10."""
    if folder is not None:
        return registry.load(Data(name="cifar10", dir=folder))[0]
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (50_000, 3, 32, 32), np.uint8)
    scale = np.full(3, 127.5, np.float32)
    return Dataset(images, random.integers(0, 10, 50_000), tuple("0123456789"), scale, scale)


class Plain:
    """What a researcher writes first: one net, one loop, one process."""

    def __init__(self, plan: Plan, training: Dataset) -> None:
        self._plan = plan
        self._batches = [
            node_configs.batches(plan, training, rows) for rows in node_configs.shares(plan, training.labels)
        ]
        self._net = split_network.network(plan.model, plan.seed)
        self.weights = {name: value.clone() for name, value in self._net.state_dict().items()}
        self._number = 0

    def round(self) -> None:
        self._number += 1
        sampled = node_configs.sampled(self._plan, self._number)
        total = {name: torch.zeros_like(value) for name, value in self.weights.items()}
        for device in sampled:
            self._net.load_state_dict(self.weights)
            self._net.train()
            optimizer = torch.optim.SGD(self._net.parameters(), lr=self._plan.training.lr)
            for j in self._batches[device].order(self._number, 0):
                batch = self._batches[device].batch(j)
                optimizer.zero_grad()
                cross_entropy(self._net(batch.inputs), batch.labels).backward()  # type: ignore[no-untyped-call]  # torch leaves backward() untyped
                optimizer.step()
            for name, value in self._net.state_dict().items():
                total[name] += value / len(sampled)
        self.weights = total


@contextlib.contextmanager
def _ours(args: argparse.Namespace, training: Dataset) -> Iterator[Callable[[], None]]:
    few = Dataset(training.images[:10], training.labels[:10], training.classes, training.mean, training.std)
    number = 0
    with tempfile.TemporaryDirectory() as folder:
        asked, machines = plan(args.samples), scenario.load(None)
        method = simulate.make(asked, machines, training, few, args.workers, "cpu", Path(folder))

        def step() -> None:
            nonlocal number
            number += 1
            method.round(number)

        with contextlib.closing(method):
            yield step


def _stepped(step: Callable[[], None], rounds: int) -> Turn:
    """Turns of `rounds` rounds; before the first, one that is not measured."""
    ready = False

    def turn() -> list[float]:
        nonlocal ready
        if not ready:
            step()
            ready = True
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            step()
            times.append(time.perf_counter() - began)
        return times

    return turn


def _peers(args: argparse.Namespace) -> dict[str, Turn]:
    missing = [name for name in ("flwr", "pfl", "ray") if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"bench.simulate: --peers needs {', '.join(missing)}: pip install -e '.[demo,peers]'")
    common = ["--rounds", str(args.rounds + 1), "--samples", str(args.samples)]
    common += ["--data-dir", str(args.data_dir)] if args.data_dir else []
    many = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    many += ["--nproc-per-node", str(args.workers)]
    return {
        "flower_s": _child(["-m", "bench.peers.flower", "--workers", str(args.workers), *common]),
        "pfl_one_s": _child(["-m", "bench.peers.pfl", *common]),
        "pfl_many_s": _child([*many, "-m", "bench.peers.pfl", *common, "--threads", "1"]),
    }


def _child(words: list[str]) -> Turn:
    """A turn in a process of its own, which prints its seconds as its last line; its first round is left out."""

    def turn() -> list[float]:
        environ = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        if sys.platform == "linux":
            environ["GLOO_SOCKET_IFNAME"] = "lo"  # pfl's processes are all here, whatever this machine's name is
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environ, check=False)
        lines = done.stdout.splitlines()
        if done.returncode or not lines:
            sys.exit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        times: list[float] = json.loads(lines[-1])
        return times[1:]

    return turn


if __name__ == "__main__":
    main()
