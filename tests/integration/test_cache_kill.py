"""SIGKILL at random points: what was acknowledged is there, whole, and never older.

EMO_KILLS sets how often (60 here; the long run uses 1000).
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

from edge_app.cache.disk import DiskCache

KILLS = int(os.environ.get("EMO_KILLS", "60"))
KEYS = [("a", 0), ("a", 256), ("b", 7)]
REPORT = struct.Struct("<BQ")


def content(key, version):
    """Known from key and version alone, and of another size from version to version."""
    rng = np.random.default_rng([KEYS.index(key), version])
    n = int(rng.integers(1, 9))
    return rng.standard_normal((n, 40, 30), np.float32), rng.integers(0, 9, n)


def write_for_ever(root, pipe, version):
    with DiskCache(root) as disk:
        while True:
            version += 1
            for number, key in enumerate(KEYS):
                if not disk.put(*key, version, *content(key, version)):
                    os._exit(3)
                os.write(pipe, REPORT.pack(number, version))


def kill_and_look(root, kills, seed):
    """In a process of its own with one thread, so that a fork is safe."""
    rng = random.Random(seed)
    acknowledged = dict.fromkeys(KEYS, 0)
    halves = 0
    for _ in range(kills):
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            write_for_ever(root, theirs, max(acknowledged.values()))
        os.close(theirs)
        assert select.select([ours], [], [], 30)[0], "the writer wrote nothing"
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the writer stopped by itself"
        with os.fdopen(ours, "rb") as pipe:
            for number, version in REPORT.iter_unpack(pipe.read()):
                acknowledged[KEYS[number]] = version
        halves += any(Path(root).rglob("*.tmp"))
        with DiskCache(root) as disk:
            for key in KEYS:
                entry = disk.get(*key)
                if entry is None:
                    assert acknowledged[key] == 0, f"{key} was acknowledged and is gone"
                    continue
                assert acknowledged[key] <= entry.version <= max(acknowledged.values()) + 1
                activations, labels = content(key, entry.version)
                assert np.array_equal(entry.activations, activations)
                assert np.array_equal(entry.labels, labels)
                acknowledged[key] = entry.version
            assert disk.stats()["damaged"] == 0
            entries = disk.stats()["entries"]
        assert len([p for p in Path(root).rglob("*") if p.is_file()]) == entries + 1  # and the lock
    return halves


def test_kill_at_random_points(tmp_path):
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path / "cache"), str(KILLS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60 + KILLS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0, "no kill fell into a write: the test has lost its point"


if __name__ == "__main__":
    print(kill_and_look(sys.argv[1], int(sys.argv[2]), seed=1))
