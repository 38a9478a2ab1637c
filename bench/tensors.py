"""What weights off a wire cost the process that reads them: empty tensors by the million, and an honest model.

    python -m bench.tensors [--mib 90] [--json FILE]

A message of so many MiB is put together in advance; then a receiver with the limits of a cloud of the small CNN takes it, one
without limits of its own, and one whose model it is. Seconds of that thread, the longest time that another thread stood still
meanwhile, in seconds, and by how many MiB the process's memory grew at most. Each in a process of its own.
"""

import json
import multiprocessing
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.numpy

from emo.config import Model
from emo.journal import Journal
from emo.models import split_network
from emo.wire import frame
from emo.wire.limits import Limits, of_weights
from emo.wire.messages import Update
from emo.wire.receiver import Receiver
from testbed import figures

_CHUNK, _TOPIC = 256 * 1024, "emo/wan/update/d1"
_EMPTY = b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
CASES = (
    "empty tensors, limits of the CNN",
    "empty tensors, caps only",
    "empty tensors, limits of a large model",
    "an honest large model",
)


def _honest(mib: int) -> dict[str, np.ndarray]:
    return {f"layer.{n}.weight": np.ones((1 << 18) - 1024, np.float32) for n in range(mib)}


def _limits(case: str, mib: int) -> Limits:
    if case == CASES[1]:
        return {}
    like = split_network.weights(split_network.network(Model(), 0)) if case == CASES[0] else _honest(mib)
    return {Update: of_weights(Update, like)}


def _frames(case: str, mib: int) -> list[bytes]:
    if case == CASES[3]:
        blob = safetensors.numpy.save(_honest(mib))
    else:
        count = (mib << 20) // (len(_EMPTY) + 5)
        names = b"{" + b",".join(_EMPTY % n for n in range(count)) + b"}"
        blob = struct.pack("<Q", len(names)) + names
    header = json.dumps(["r", "d1", 1, 10, 0.5, len(blob), "fp32"]).encode()
    return list(_split(struct.pack("<I", len(header)) + header + blob))


def _split(payload: bytes) -> Iterator[bytes]:
    """By hand: frame.split takes no message that it would not read."""
    step, crc = _CHUNK - frame.OVERHEAD, zlib.crc32(payload)
    count = -(-len(payload) // step)
    for index in range(count):
        piece = payload[index * step : (index + 1) * step]
        head = frame.HEAD.pack(b"EMO", 2, frame.KINDS.index(Update), bytes(8), index, count, len(payload), crc)
        yield head + struct.pack("<I", zlib.crc32(piece, zlib.crc32(head))) + piece


def measure(case: str, mib: int) -> dict[str, float | str]:
    receiver = Receiver[None]("emo", Journal(), limits=_limits(case, mib))
    frames, over, longest = _frames(case, mib), threading.Event(), 0.0

    def beat() -> None:
        nonlocal longest
        last = time.perf_counter()
        while not over.wait(0.001):
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    thread = threading.Thread(target=beat)
    thread.start()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
    before, began = _peak(), time.perf_counter()
    got = [receiver.take(_TOPIC, data, None)[0] for data in frames]
    seconds = time.perf_counter() - began
    over.set()
    thread.join()
    grown = _peak() - before
    taken = "taken" if any(got) else "refused"
    times = {"seconds": round(seconds, 2), "longest": round(longest, 3)}
    return {"case": case, "result": taken, **times, "mib": grown}


def _peak() -> int:
    """MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


def main() -> None:
    parser = figures.parser(__doc__)
    parser.add_argument("--mib", type=int, default=90, help="size of each message")
    args = parser.parse_args()
    print(f"{args.mib} MiB\n")
    figures.heads("what", "", "seconds", "longest stall", "MiB more")
    rows = []
    for case in CASES:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (case, args.mib))
        rows.append(row)
        figures.markdown(*row.values())
    figures.write(args.json, rows)


if __name__ == "__main__":
    main()
