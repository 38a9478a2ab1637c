"""Did a change move a bit? Digests of a short simulated run: run this before and after, on one machine, and compare.

    python -m bench.bits

EMO on the digits, 2 edges, 2 workers, one thread: the final weights of the FL model and of each overlay, and the answers of
the exported ONNX file to seeded noise. SHA-256 over names, dtypes, shapes and bytes. The frames of the wire are held by
tests/unit/emo/wire/test_protocol.py.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from cloud_app.serving.onnx_session import open_session
from emo.parser import Parser
from testbed.simulation.run_folder import Run


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Of the arrays, whatever their order."""
    whole = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        whole.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


def measure(rounds: int, devices: int) -> dict[str, str]:
    """{part: digest}; `onnx`: of logits and probabilities. Raises CalledProcessError where the run fails."""
    with TemporaryDirectory() as folder:
        out, onnx = Path(folder) / "run", Path(folder) / "model.onnx"
        asked = f"simulate --method emo --devices {devices} --per-round {devices} --rounds {rounds} --workers 2"
        subprocess.run(
            [sys.executable, "-m", "emo.cli", *asked.split(), "--out", out, "--export", onnx],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        images = np.random.default_rng(0).integers(0, 256, (64, 1, 8, 8), dtype=np.uint8)
        session = open_session(onnx, threads=1)
        names = [each.name for each in session.get_outputs()]
        answers = dict(zip(names, session.run(names, {"images": images}), strict=True))
        return {part: digest(arrays) for part, arrays in Run(out).weights().items()} | {"onnx": digest(answers)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--devices", type=int, default=10, metavar="N", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    args = parser.parse_args(argv)
    digests = measure(args.rounds, args.devices)
    print(json.dumps(digests) if args.json else "\n".join(f"{part:<10} {each}" for part, each in digests.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
