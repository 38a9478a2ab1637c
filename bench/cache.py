"""What the disk cache costs over plain files, how much room it takes, and how soon it starts; and training from it.

    python -m bench.cache [--json FILE] [--dir DIR]

`write_MBps`, `read_MBps`: of batches put and got (bytes of what was given to put and its labels); `raw_...`: of plain files
of the same bytes, synced by the same policy: each file and its folder ("batch"), or 16 files, then their folder ("group").
Raw and cache take turns, medians over the turns. Files are new; they are read from the disk: they were told to leave
the page cache (`hot_...`: from there; no disk is as fast as that). `put_us`, `get_us`: processor time a batch. The
figures without a case are those of the first: MobileNet's batches, fp32, each synced by itself.

`space_amplification`: of the whole folder, allocated blocks, after 100 overwrites of every batch, over one copy's bytes.
`rebuild_s_100k`: a start on 100,000 small batches of 20 devices, whose names are in the system's memory.
"""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench import replay
from edge_app.cache.disk import DiskCache
from emo import files
from emo.wire import codec
from testbed import figures

GROUP = 16
MOBILENET, VGG = (16, 128, 16, 16), (16, 256, 4, 4)
LABELS = np.arange(16, dtype=np.int64)
Content = np.ndarray | bytes
Figures = dict[str, float]


class Case(NamedTuple):
    name: str
    shape: tuple[int, ...]
    codec: str
    durability: str


CASES = [
    Case(f"{name} {code or 'plain'} {durability}", shape, code, durability)
    for durability in ("batch", "group")
    for name, shape, code in (
        ("mobilenet", MOBILENET, ""),
        ("vgg", VGG, ""),
        ("mobilenet", MOBILENET, "int4"),
        ("vgg", VGG, "int4"),
    )
]


def main() -> None:
    parser = figures.parser(__doc__, turns=7)
    parser.add_argument(
        "--dir",
        type=Path,
        help="on the disk that is to be measured; a folder in it is made and removed (default: the system's for temporary files)",
    )
    parser.add_argument("--batches", type=int, default=48, help="a turn; of at most 100 MB")
    parser.add_argument("--overwrites", type=int, default=100, help="of one batch")
    parser.add_argument("--entries", type=int, default=100_000, help="that a start finds")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="bench-cache-") as name:
        folder = Path(name)
        cases = {case.name: _speeds(folder, case, args.batches, args.turns) for case in CASES}
        _table(cases)
        result = dict(cases[CASES[0].name])
        result["space_amplification"] = _amplification(folder, args.overwrites)
        result["rebuild_s_100k"] = _rebuild(folder, args.entries) * 100_000 / args.entries
    result |= replay.measure()
    figures.show(result)
    named = [{"name": name, **case} for name, case in cases.items()]
    figures.write(args.json, {**result, "cases": named})


def _content(case: Case, seed: int) -> Content:
    """As activations after ReLU are: half of them 0."""
    array = np.maximum(np.random.default_rng(seed).standard_normal(case.shape, np.float32), 0)
    return codec.encode(array, case.codec) if case.codec else array


def _speeds(folder: Path, case: Case, batches: int, turns: int) -> Figures:
    contents = [_content(case, seed) for seed in range(8)]
    size = statistics.fmean(map(_size, contents))
    count = max(GROUP, min(batches, int(1e8 / size)) // GROUP * GROUP)
    stream = [contents[number % len(contents)] for number in range(count)]
    megabytes = sum(map(_size, stream)) / 1e6
    rows: list[Figures] = []
    for turn in range(turns):
        row: Figures = {}
        sides = [_cache_turn, _raw_turn]
        for side in sides if turn % 2 else sides[::-1]:
            place = folder / "turn"
            place.mkdir()
            os.sync()  # what others have left to write
            row |= side(place, case, stream)
            shutil.rmtree(place)
        rows.append(row)
    medians = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    speeds = {f"{key}_MBps": megabytes / seconds for key, seconds in medians.items() if not key.endswith("_us")}
    return speeds | {key: 1e6 * seconds / count for key, seconds in medians.items() if key.endswith("_us")}


def _cache_turn(place: Path, case: Case, stream: list[Content]) -> Figures:
    with DiskCache(place, durability=case.durability) as disk:

        def write() -> None:
            for batch, content in enumerate(stream):
                disk.put("device", batch, 1, content, LABELS)
                if batch % GROUP == GROUP - 1:
                    disk.flush()

        def read() -> None:
            for batch in _order(len(stream)):
                disk.get("device", batch)

        return {
            **_timed(write, "write", "put_us"),
            **_timed(read, "read", "get_us", cold=place),
            **_timed(read, "hot_read"),
        }


def _raw_turn(place: Path, case: Case, stream: list[Content]) -> Figures:
    """The fastest way to write and read the same bytes, whole files at a time."""
    raw = [(content if isinstance(content, bytes) else content.tobytes()) + LABELS.tobytes() for content in stream]
    paths = [place / str(batch) for batch in range(len(raw))]

    def write() -> None:
        for batch, (path, data) in enumerate(zip(paths, raw, strict=True)):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            os.write(handle, data)
            if case.durability == "batch":
                os.fsync(handle)
            os.close(handle)
            if case.durability == "batch":
                files.sync(place)
            elif batch % GROUP == GROUP - 1:
                files.sync_all(paths[batch - GROUP + 1 : batch + 1])
                files.sync(place)

    def read() -> None:
        for batch in _order(len(paths)):
            paths[batch].read_bytes()

    return {
        **_timed(write, "raw_write"),
        **_timed(read, "raw_read", cold=place),
        **_timed(read, "raw_hot_read"),
    }


def _timed(work: Callable[[], None], name: str, processor: str = "", cold: Path | None = None) -> Figures:
    """Seconds. `cold`: its files are to leave the page cache first."""
    if cold:
        os.sync()
        for path in _files(cold):
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)
    used, began = time.process_time(), time.perf_counter()
    work()
    wall, used = time.perf_counter() - began, time.process_time() - used
    return {name: wall, processor: used} if processor else {name: wall}


def _amplification(folder: Path, overwrites: int) -> float:
    place, case = folder / "space", CASES[0]
    content = _content(case, 0)
    with DiskCache(place, durability="group") as disk:
        for version in range(overwrites + 1):
            for batch in range(4):
                disk.put("device", batch, version, content, LABELS)
            disk.flush()
        used = sum(512 * path.stat().st_blocks for path in _files(place))
    shutil.rmtree(place)
    return used / (4 * _size(content))


def _rebuild(folder: Path, entries: int) -> float:
    place = folder / "start"
    with DiskCache(place, durability="none") as disk:
        for number in range(entries):
            disk.put(f"device-{number % 20}", number // 20, 1, LABELS, LABELS)
    os.sync()
    began = time.perf_counter()
    DiskCache(place).close()
    return time.perf_counter() - began


def _order(count: int) -> list[int]:
    return [int(number) for number in np.random.default_rng(0).permutation(count)]


def _size(content: Content) -> int:
    return LABELS.nbytes + (len(content) if isinstance(content, bytes) else content.nbytes)


def _files(place: Path) -> Iterator[Path]:
    return (path for path in place.rglob("*") if path.is_file())


def _table(cases: dict[str, Figures]) -> None:
    names = list(cases[CASES[0].name])
    print(f"{'':<24}" + "".join(f"{name.replace('_MBps', ''):>14}" for name in names) + "   (MB/s, us)")
    for name, case in cases.items():
        print(f"{name:<24}" + "".join(f"{case[figure]:>14.0f}" for figure in names))


if __name__ == "__main__":
    main()
