"""SIGKILL at random points: what was acknowledged is there, whole, and never older.

EMO_KILLS sets how often in all (24 here); the long run is

    EMO_KILLS=1000 python -m pytest tests/integration/test_cache_kill.py
"""

import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

KILLS = int(os.environ.get("EMO_KILLS", "24"))
KEYS = [("a", 0), ("a", 1), ("a", 256), ("b", 7), ("b", 8), ("c", 0)]
REPORT = struct.Struct("<BQ")
BUDGET = 40_000  # of six batches of 3 to 14 KB
MODES = {"batch": ("batch", None), "group": ("group", None), "budget": ("group", BUDGET)}


def content(key, version):
    """Known from key and version alone; of another size, and encoded or not, from version to version."""
    rng = np.random.default_rng([KEYS.index(key), version])
    n = int(rng.integers(1, 9))
    array = rng.standard_normal((n, 40, 8), np.float32)
    return (codec.encode(array, "int8") if version % 3 == 0 else array), rng.integers(0, 9, n)


def as_read(stored):
    return codec.decode(stored, 10**5) if isinstance(stored, bytes) else stored


def write_for_ever(root, mode, pipe, version, seed):
    rng = random.Random(seed)
    durability, budget = MODES[mode]
    with DiskCache(root, budget, durability=durability) as disk:
        while True:
            group = []
            for _ in range(1 if durability == "batch" else rng.randrange(1, 8)):
                version += 1
                key = rng.randrange(len(KEYS))
                if not disk.put(*KEYS[key], version, *content(KEYS[key], version)):
                    os._exit(3)
                group.append(REPORT.pack(key, version))
            disk.flush()
            os.write(pipe, b"".join(group))


def kill_and_look(root, mode, kills, seed):
    """In a process of its own with one thread, so that a fork is safe. How many kills fell into a write; until one
    has, there are more, ten times as many at most."""
    rng, acknowledged, latest, inside = random.Random(seed), dict.fromkeys(KEYS, 0), 0, 0
    durability, budget = MODES[mode]
    for kill in range(10 * kills):
        if kill >= kills and inside:
            break
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            write_for_ever(root, mode, theirs, latest + 1000, f"{seed} {kill}")
        os.close(theirs)
        assert select.select([ours], [], [], 30)[0], "the writer wrote nothing"
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the writer stopped by itself"
        with os.fdopen(ours, "rb") as pipe:
            for number, version in REPORT.iter_unpack(pipe.read()):
                acknowledged[KEYS[number]] = latest = version
        there = list(Path(root).rglob("*.*"))
        batches = {(path.parent, path.name.split("-")[0]) for path in there}
        inside += len(batches) < len(there) or any(path.suffix == ".tmp" for path in there)
        with DiskCache(root, budget, durability=durability) as disk:
            for key in KEYS:
                entry = disk.get(*key)
                if entry is None:
                    assert budget or not acknowledged[key], f"{key} was acknowledged and is gone"
                    continue
                assert acknowledged[key] <= entry.version <= latest + 2000
                activations, labels = content(key, entry.version)
                assert np.array_equal(entry.activations, as_read(activations))
                assert np.array_equal(entry.labels, labels)
                acknowledged[key] = entry.version
            stats = disk.stats()
            assert stats["damaged"] == 0
            assert stats["bytes"] <= (budget or stats["bytes"])
        files = [path for path in Path(root).rglob("*") if path.is_file()]
        assert len(files) == stats["entries"] + 1  # and the lock
        assert sum(path.stat().st_size for path in files) == stats["bytes"]
    return inside


@pytest.mark.parametrize("mode", MODES)
def test_kill_at_random_points(tmp_path, mode):
    kills = -(-KILLS // len(MODES))
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path / "cache"), mode, str(kills)],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60 + 2 * kills,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0, "no kill fell into a write: the test has lost its point"


if __name__ == "__main__":
    from edge_app.cache.disk import DiskCache
    from emo.wire import codec

    assert "torch" not in sys.modules
    print(kill_and_look(sys.argv[1], sys.argv[2], int(sys.argv[3]), seed=1))
