"""What one trunk for all members saves: the exported ensemble's time beside that of its parts, and of N separate models.

    python -m bench.trunk --json FILE

Untrained weights, since time does not depend on them. One line a network.
"""

import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from torch import nn

from cloud_app.ensemble import model
from cloud_app.ensemble.onnx_export import export, trace
from cloud_app.serving.onnx_session import open_session
from emo.config import Model
from emo.models import split_network
from testbed import figures

NETWORKS = ("vgg6", 0.25, 10), ("vgg6", 1.0, 10), ("mobilenet6", 0.25, 100), ("mobilenet6", 1.0, 100)


class _Front(nn.Module):
    """Normalisation and trunk: what all members share."""

    def __init__(self, whole: model.Ensemble) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.whole.split(images)


def measure(spec: Model, members: int = 2, batch: int = 8, threads: int = 1, runs: int = 30) -> dict[str, float]:
    """Milliseconds a batch, the fastest of `runs`, of sessions with `threads` threads that take turns. With one thread
    it is processor time, in which other processes do not count; with more it is the clock's.

    `shared_trunk_ratio`: the ensemble, over trunk and members each in a session of its own (at most 1.1 is asked
    for). `separate_ratio`: the ensemble, over as many models as there are members, a trunk in each.
    """
    now = time.thread_time if threads == 1 else time.perf_counter
    scale = np.full(spec.input[0], 100, np.float32)
    overlays = {f"{number}": split_network.weights(split_network.overlay(spec, number)) for number in range(members)}
    parts = model.parts(split_network.weights(split_network.network(spec, 0)), overlays)
    whole = model.build(spec, parts, scale, scale)
    one = model.build(spec, parts, scale, scale, shares={"overlay-0": 1.0})
    front, labels = _Front(whole), [str(number) for number in range(spec.classes)]
    example = torch.zeros(2, *spec.input, dtype=torch.uint8)
    with TemporaryDirectory() as folder, torch.inference_mode():
        files = {name: Path(folder) / f"{name}.onnx" for name in ("ensemble", "pair", "trunk", "member")}
        export(whole, files["ensemble"], spec.input, labels, {})
        export(one, files["pair"], spec.input, labels, {})
        onnx.save(trace(front, example, "images", ["split"]), files["trunk"])
        onnx.save(trace(whole.members[0], front(example), "images", ["logits"]), files["member"])
        sessions = {name: open_session(path, threads) for name, path in files.items()}
    images = np.random.default_rng(0).integers(0, 256, (batch, *spec.input), np.uint8)
    given = dict.fromkeys(sessions, images) | {"member": sessions["trunk"].run(None, {"images": images})[0]}

    def took(name: str) -> float:
        start = now()
        sessions[name].run(None, {"images": given[name]})
        return 1e3 * (now() - start)

    turns = figures.in_turns({name: partial(took, name) for name in sessions}, runs)
    ms = {name: min(times) for name, times in turns.items()}
    return {
        **{f"{name}_ms": round(value, 3) for name, value in ms.items()},
        "shared_trunk_ratio": round(ms["ensemble"] / (ms["trunk"] + members * ms["member"]), 3),
        "separate_ratio": round(ms["ensemble"] / (members * ms["pair"]), 3),
    }


def main() -> None:
    parser = figures.parser(__doc__)
    parser.add_argument("--members", type=int, default=2, help="of the ensemble")
    parser.add_argument("--batch", type=int, default=8, help="samples a request")
    parser.add_argument("--threads", type=int, default=1, help="onnxruntime's")
    args = parser.parse_args()
    rows = []
    for name, width, classes in NETWORKS:
        spec = Model(name=name, width=width, input=(3, 32, 32), classes=classes)
        measured = measure(spec, args.members, args.batch, args.threads)
        rows.append({"network": name, "width": width, **measured})
        figures.line(rows[-1], " ")
    setup = {"members": args.members, "batch": args.batch, "threads": args.threads}
    figures.write(args.json, {**setup, "rows": rows})


if __name__ == "__main__":
    main()
