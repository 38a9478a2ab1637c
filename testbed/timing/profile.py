"""`emo doctor --profile`: how fast this machine trains, as a device class to paste into a scenario."""

import itertools
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.nn.functional import cross_entropy

from emo.config import Model
from emo.local_sgd import Sgd
from emo.models import split_network
from testbed.timing import costs
from testbed.timing.costs import BACKWARD

BATCH = 16
_SPEC = Model(name="vgg6", input=(3, 32, 32))
_STEPS, _SECONDS, _MOST = 5, 3.0, 200  # at least so many steps and so long, but no more than these
_MIB = 1 << 20


def text(device_class: dict[str, Any]) -> str:
    """YAML of `measure`'s result, with what it was measured on."""
    what = "its GPU" if torch.cuda.is_available() else f"its CPU, {torch.get_num_threads()} threads"
    return (
        f"# {platform.machine()}, {what}; torch {torch.__version__}, {_SPEC.name} at batch {BATCH}, fp32\n"
        "# for `devices:` of a scenario; for `edge:` or `cloud:` leave out name and share\n"
        + yaml.safe_dump([device_class], sort_keys=False)
    )


def measure(spec: Model = _SPEC, seconds: float = _SECONDS) -> dict[str, Any]:
    """A device class (scenario.DeviceClass) of this machine: medians over training steps of `spec` with all of torch's
    threads, on the GPU where there is one, the first two left out; memory as it is free now."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = split_network.network(spec, 0).to(device)
    optimizer = Sgd(net.parameters(), 0.001)
    inputs = torch.randn(BATCH, *spec.input, device=device)
    labels = torch.arange(BATCH, device=device) % spec.classes
    forward, backward = list[float](), list[float]()
    start = time.perf_counter()
    for step in itertools.count():
        if step == _MOST or (step >= 2 + _STEPS and time.perf_counter() - start >= seconds):
            break
        optimizer.zero_grad()
        begun = _now(device)
        loss = cross_entropy(net(inputs), labels)
        turned = _now(device)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward() untyped
        optimizer.step()
        forward.append(turned - begun)
        backward.append(_now(device) - turned)
    cost = costs.of(spec)
    flops = BATCH * (cost.trunk + cost.head).flops
    return {
        "name": platform.node()[:64] or "this machine",
        "share": 1.0,
        "forward_flops": float(f"{flops / statistics.median(forward[2:]):.2g}"),
        "backward_flops": float(f"{BACKWARD * flops / statistics.median(backward[2:]):.2g}"),
        "memory_mib": _memory(device),
    }


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _memory(device: torch.device) -> int:
    """Free MiB: of the GPU, or of the machine as Linux reckons it; half a GiB where that cannot be read."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info()[0]) // _MIB
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(free.split()[1]) // 1024
    except (OSError, StopIteration, ValueError, IndexError):
        return 512
