"""Twenty devices trained together on one GPU (testbed/fleet/vmap_sgd.py), and one after another as emo/local_sgd.py does it.

    python -m bench.stacked [--json FILE] [--model vgg6 --width 0.25 --devices 20 --samples 500 --torch-device cuda]

`together_s`, `alone_s`: seconds a round, the median of `--rounds`, taking turns, the first left out; `ratio`: the second
over the first. `apart`: the L2 distance between their weights after a round, over the way that training has moved them. Batches lie in the device's memory before either begins. Without a GPU it runs on the CPU, where
there is nothing to gain: its cores are busy with one device.
"""

import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emo.config import Model, Training
from emo.data.batches import Batch
from emo.local_sgd import train
from emo.models import split_network
from emo.parser import Parser
from emo.wire.messages import Weights
from testbed.fleet.vmap_sgd import Stack

Streams = list[list[Batch]]


def main() -> None:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="vgg6", help="cnn, vgg6, mobilenet6, ...")
    parser.add_argument("--width", type=float, default=0.25, help="width multiplier of the network")
    parser.add_argument(
        "--norm", choices=["group", "batch", "none"], default="group", help="how the network normalises"
    )
    parser.add_argument("--devices", type=int, default=20, help="how many")
    parser.add_argument("--samples", type=int, default=500, help="of one device")
    parser.add_argument("--batch-size", type=int, default=16, help="samples a batch")
    parser.add_argument("--rounds", type=int, default=5, help="FL rounds")
    parser.add_argument(
        "--torch-device", default="cuda" if torch.cuda.is_available() else "cpu", help="where it trains"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures to FILE (default: no file)"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    spec = Model(name=args.model, width=args.width, norm=args.norm, input=(3, 32, 32))
    streams = _noise(spec, args.devices, args.samples, args.batch_size, args.torch_device)
    figures = {
        "model": f"{args.model} x {args.width:g}, {args.norm} norm",
        "devices": args.devices,
        "samples": args.samples,
        "batch_size": args.batch_size,
        "on": torch.cuda.get_device_name() if args.torch_device.startswith("cuda") else "cpu, one thread",
        **_measure(spec, streams, args.rounds, args.torch_device),
    }
    for key, value in figures.items():
        print(f"{key:12} {value}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _measure(spec: Model, streams: Streams, rounds: int, device: str) -> dict[str, Any]:
    start, settings = split_network.weights(split_network.network(spec, 0)), Training()
    net = split_network.network(spec, 0).to(device)
    stack = Stack(split_network.network(spec, 0), device)

    def alone() -> list[Weights]:
        found: list[Weights] = []
        for stream in streams:
            split_network.load(net, start)
            list(train(net, stream, settings))
            found.append(split_network.weights(net))
        return found

    def together() -> list[Weights]:
        stack.load(start, len(streams))
        list(stack.epoch(streams, settings))
        return [stack.weights(place) for place in range(len(streams))]

    ways: dict[str, Callable[[], list[Weights]]] = {"together": together, "alone": alone}
    ends = {name: run() for name, run in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in ways if number % 2 else reversed(ways):
            began = time.perf_counter()
            ways[name]()  # weights go back to the CPU: nothing is left to wait for
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
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
