"""Twenty devices trained together on one GPU (testbed/fleet/vmap_sgd.py), and one after another as emo/local_sgd.py does it.

    python -m bench.stacked [--json FILE] [--model vgg6 --width 0.25 --devices 20 --samples 500 --torch-device cuda]

`together_s`, `alone_s`: seconds a round, the median of `--rounds`, taking turns, the first left out; `ratio`: the second
over the first. `apart`: the L2 distance between their weights after a round, over the way that training has moved them. Batches lie in the device's memory before either begins. Without a GPU it runs on the CPU, where
there is nothing to gain: its cores are busy with one device.
"""

import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from emo.config import Model, Training
from emo.data.batches import Batch
from emo.local_sgd import train
from emo.models import split_network
from emo.wire.messages import Weights
from testbed import figures
from testbed.fleet.vmap_sgd import Stack

Streams = list[list[Batch]]


def main() -> None:
    parser = figures.parser(
        __doc__, model="vgg6", width=0.25, norm="group", devices=20, samples=500, batch_size=16, rounds=5
    )
    where = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--torch-device", default=where, help="where it trains")
    args = parser.parse_args()
    torch.set_num_threads(1)
    spec = Model(name=args.model, width=args.width, norm=args.norm, input=(3, 32, 32))
    streams = _noise(spec, args.devices, args.samples, args.batch_size, args.torch_device)
    result = {
        "model": f"{args.model} x {args.width:g}, {args.norm} norm",
        "devices": args.devices,
        "samples": args.samples,
        "batch_size": args.batch_size,
        "on": torch.cuda.get_device_name() if args.torch_device.startswith("cuda") else "cpu, one thread",
        **_measure(spec, streams, args.rounds, args.torch_device),
    }
    figures.show(result)
    figures.write(args.json, result)


def _measure(spec: Model, streams: Streams, rounds: int, device: str) -> dict[str, Any]:
    start, settings = split_network.weights(split_network.network(spec, 0)), Training()
    net = split_network.network(spec, 0).to(device)
    stack = Stack(split_network.network(spec, 0), device)

    def alone() -> list[Weights]:
        weights: list[Weights] = []
        for stream in streams:
            split_network.load(net, start)
            list(train(net, stream, settings))
            weights.append(split_network.weights(net))
        return weights

    def together() -> list[Weights]:
        stack.load(start, len(streams))
        list(stack.epoch(streams, settings))
        return [stack.weights(place) for place in range(len(streams))]

    ends = {"together": together(), "alone": alone()}

    def seconds(way: Callable[[], list[Weights]]) -> float:
        began = time.perf_counter()
        way()  # weights go back to the CPU: nothing is left to wait for
        return time.perf_counter() - began

    ways = {"together": partial(seconds, together), "alone": partial(seconds, alone)}
    turns = figures.in_turns(ways, rounds)
    medians = {name: statistics.median(times) for name, times in turns.items()}
    return {
        "together_s": round(medians["together"], 4),
        "alone_s": round(medians["alone"], 4),
        "ratio": round(medians["alone"] / medians["together"], 2),
        "apart": float(f"{_apart(ends['together'], ends['alone'], start):.2g}"),
    }


def _apart(ours: list[Weights], theirs: list[Weights], start: Weights) -> float:
    pairs = list(zip(ours, theirs, strict=True))
    moved = sum(_square(two, start) for _, two in pairs)
    return math.sqrt(sum(_square(one, two) for one, two in pairs) / moved)


def _square(one: Weights, two: Weights) -> float:
    return sum(float(np.square(one[name] - two[name], dtype=np.float64).sum()) for name in one)


def _noise(spec: Model, devices: int, samples: int, size: int, device: str) -> Streams:
    drawn = torch.Generator().manual_seed(0)
    sizes = [min(size, samples - start) for start in range(0, samples, size)]
    return [
        [
            Batch(
                j,
                torch.randn(n, *spec.input, generator=drawn).to(device),
                torch.randint(spec.classes, (n,), generator=drawn).to(device),
            )
            for j, n in enumerate(sizes)
        ]
        for _ in range(devices)
    ]


if __name__ == "__main__":
    main()
