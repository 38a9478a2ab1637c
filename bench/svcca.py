"""What a score costs: SVCCA and CKA beside the direct form of SVCCA, on one core.

    python -m bench.svcca [--json FILE] [--rounds 9]

Direct form: centre, SVD of both sides, 99 % of the variance, SVD of the product of the two bases; by numpy, as in
the paper's code. `direct_torch_ms` is the same by torch, whose LAPACK may be far faster on tall matrices. Both are
timed in float32 and in float64, and the faster counts. `ms` is for float32 input, `float64_ms` for float64.

Processor time of one thread, medians in ms; all forms take turns, so that the machine's other work hits them alike.
`max_error` is against the direct form in float64, over six kinds of input, each in float32 and float64.
"""

import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from edge_app.intervals.cka import cka
from edge_app.intervals.covariance import Floats
from edge_app.intervals.svcca import svcca
from testbed import figures

CASES = (256, 64), (4096, 64), (16384, 128)  # the first is a batch of 16 at VGG's split, width 0.25
VARIANCE = 0.99


def main() -> None:
    parser = figures.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="turns that each form takes in each case")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        cases = [_case(n, c, args.rounds) for n, c in CASES]
    for name in cases[0]:
        print(f"{name:<18}", *(f"{case.get(name, '-'):>12}" for case in cases))
    figures.write(args.json, {"cases": cases})


def _case(n: int, c: int, rounds: int) -> dict[str, float]:
    inputs: list[tuple[Floats, Floats]] = []
    for a, b in _inputs(n, c):
        inputs += [(a.astype(np.float32), b.astype(np.float32)), (a, b)]
    errors = [abs(svcca(a, b) - direct(a.astype(np.float64), b.astype(np.float64))) for a, b in inputs]
    narrow, wide = inputs[:2]
    jobs: dict[str, Callable[[], object]] = {
        "svcca": lambda: svcca(*narrow),
        "direct32": lambda: direct(*narrow),
        "svcca64": lambda: svcca(*wide),
        "direct64": lambda: direct(*wide),
        "torch32": lambda: direct_torch(*narrow),
        "torch64": lambda: direct_torch(*wide),
        "cka": lambda: cka(*narrow),
    }
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _turn in range(rounds):
        for name, job in jobs.items():
            job()  # what ran before has left the caches full of other things
            for _ in range(3):
                began = time.process_time()
                job()
                times[name].append((time.process_time() - began) * 1e3)
    ms = {name: statistics.median(taken) for name, taken in times.items()}
    direct_svd = min(ms["direct32"], ms["direct64"])
    return {
        "n": n,
        "c": c,
        "ms": round(ms["svcca"], 3),
        "direct_svd_ms": round(direct_svd, 3),
        "ratio": round(direct_svd / ms["svcca"], 2),
        "max_error": float(f"{max(errors):.2g}"),
        "float64_ms": round(ms["svcca64"], 3),
        "direct_torch_ms": round(min(ms["torch32"], ms["torch64"]), 3),
        "cka_ms": round(ms["cka"], 3),
    }


def direct(a: Floats, b: Floats) -> float:
    """The score by its definition, in the precision of the input. The bases make the second SVD a small one."""
    bases = []
    for x in (a, b):
        u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
        share = np.cumsum(s**2) / np.sum(s**2)
        bases.append(u[:, : int(np.argmax(share >= VARIANCE)) + 1])
    return float(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False).mean())


def direct_torch(a: Floats, b: Floats) -> float:
    """As `direct`, by torch."""
    bases = []
    for x in (torch.from_numpy(a), torch.from_numpy(b)):
        u, s, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
        share = (s**2).cumsum(0) / (s**2).sum()
        bases.append(u[:, : int((share < VARIANCE).sum()) + 1])
    return float(torch.linalg.svdvals(bases[0].T @ bases[1]).mean())


def _inputs(n: int, c: int) -> Iterator[tuple[Floats, Floats]]:
    """Pairs (n, c), float64: four spectra, from flat to one direction with 98 % of the variance, rotated, with a
    mean; then rectified as a trunk's output is; then one with channels of very different strength and a large mean."""
    rng = np.random.default_rng([n, c])
    dominant = np.full(c, np.sqrt(0.02 / c))
    dominant[0] = np.sqrt(0.98)
    dominant *= np.linspace(1.2, 0.8, c)
    for strengths in (
        1 / np.arange(1, c + 1) ** 0.5,
        np.ones(c),
        2.0 ** -np.arange(c).clip(max=14),
        dominant,
    ):
        rotation = np.linalg.qr(rng.standard_normal((c, c)))[0]
        a = (rng.standard_normal((n, c)) * strengths) @ rotation + 1.0
        b = a + rng.uniform(0.1, 1.0) * (rng.standard_normal((n, c)) * strengths) @ rotation
        yield a, b
    yield np.maximum(a, 1.0), np.maximum(b, 1.0)
    yield a * np.logspace(-3, 0, c) + 1e3, b * np.logspace(-3, 0, c) - 1e3


if __name__ == "__main__":
    main()
