"""Two processes train as one does, and end together, whichever of them ends first and however."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_app.overlay import multi_gpu
from edge_app.overlay.trainer import Trainer
from emo.config import EdgeConfig, Model, Overlay
from emo.errors import ConfigError, EmoError
from emo.models import split_network

CONFIG = EdgeConfig(
    id="edge-1", devices=("device-0",), model=Model(name="drawn:net", width=0.5, input=(1, 8, 8), classes=4)
)
CURVES = {  # at a rate at which the rounding of sums does not grow
    "plain": Overlay(lr=0.01, average=0.9),
    "all": Overlay(lr=0.01, mixup=0.4, flip=True, schedule="cosine", checkpoint_steps=4, seed=5),
}
STEPS = 20
BAD = 11  # the step with a sample that is not finite, in the part of rank 1


def module(settings):
    return split_network.overlay(CONFIG.model, settings.seed)


def batches(step):
    """Of 61 samples rank 0 has 31, of one all."""
    random = torch.Generator().manual_seed(step)
    counts = [1] if step == 5 else [16, 16, 16, 13]
    labels = [torch.randint(0, 4, (n,), generator=random) for n in counts]
    shape = split_network.split_shape(CONFIG.model)
    given = [(torch.rand(len(y), *shape, generator=random) + y[:, None, None, None] / 4, y) for y in labels]
    if step == BAD:
        given[-1][0][-1] = float("nan")
    return given


def curve(trainer, name):
    weights = [0.5, 2.0, 1.0, 0.7] if name == "all" else None
    losses = []
    for step in range(STEPS):
        given = batches(step)
        losses += trainer.step(given, weights and weights[: len(given)], step / STEPS)
    counts = [trainer.steps, trainer.refused_steps, trainer.rollbacks]
    return losses, counts, {key: value.tolist() for key, value in trainer.weights().items()}


def drawn(trainer):
    """A curve with dropout, which depends on no number that was drawn before."""
    torch.rand(1)
    dropping = module(CURVES["plain"])
    dropping[0].p.fill_(0.5)
    return curve(trainer(dropping, CURVES["plain"]), "plain")[0]


def interrupted(make):
    """A curve with ten refused steps in a row, which end at the checkpoint before them, and another trainer that goes on
    from the state of the first."""
    settings = Overlay(lr=0.01, checkpoint_steps=4)
    trainer, losses = make(module(settings), settings), []
    for step in range(24):
        given = batches(BAD if 6 <= step < 16 else step)
        losses += trainer.step(given)
        if step == 19:
            state, trainer = trainer.state(), make(module(settings), settings)
            trainer.step(batches(2))  # of its own start, which is not to count
            trainer.load(state)
    assert trainer.sound(batches(1)[0])
    assert not trainer.sound(batches(BAD)[-1])
    return [*losses, trainer.step(batches(3))[0], trainer.steps]


def rank(mode, out):
    """One process, as `edge_app.run` has it; exits 2 on an EmoError."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    torch.set_num_threads(1)
    world = multi_gpu.world()
    if world.rank > 0:
        multi_gpu.worker(CONFIG, world)
        return
    with multi_gpu.Leader(world, stop.set, beat_s=0.2) as leader:
        if mode == "curve":
            found = {n: curve(leader.trainer(module(s), s), n) for n, s in CURVES.items()}
            found["drawn"] = [drawn(leader.trainer) for _ in range(2)]
            found["interrupted"] = interrupted(leader.trainer)
            Path(out).write_text(json.dumps(found))
            return
        settings = CURVES["plain"]
        trainer = leader.trainer(module(settings), settings)
        if mode == "train":
            trainer.step(batches(0))
        print("ready", flush=True)
        while not stop.is_set():
            if mode == "train":
                trainer.step(batches(0))
            elif mode == "raise":
                raise EmoError("of its own")
            else:
                time.sleep(0.05)  # not stop.wait: the handler above would wait for its lock


ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "PYTHONPATH": os.pathsep.join(str(Path(__file__).parents[up]) for up in (1, 2)),
}


def test_two_processes_give_the_curve_of_one(tmp_path):
    out = tmp_path / "curves.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, __file__, "curve", str(out)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    curves = json.loads(out.read_text())
    np.testing.assert_allclose(curves.pop("interrupted"), interrupted(Trainer), rtol=1e-5)
    first, again = curves.pop("drawn")
    np.testing.assert_array_equal(first, again)
    assert abs(np.array(first) - curves["plain"][0])[:3].min() > 1e-3  # it has drawn
    for name, (losses, counts, weights) in curves.items():
        expected, alone, state = curve(Trainer(module(CURVES[name]), CURVES[name]), name)
        assert counts == alone == [STEPS - 1, 1, 0]
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        assert np.isnan(losses).sum() == 4
        for key, value in state.items():
            np.testing.assert_allclose(weights[key], value, rtol=1e-4, atol=1e-6)
    torch.set_num_threads(before)


@pytest.fixture
def pair(tmp_path):
    """Starts two processes, with nobody above them who would end one when the other is gone."""
    started = []

    def start(mode):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for number in range(2):
            mine = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "MASTER_PORT": port}
            environment = {**ENVIRONMENT, "MASTER_ADDR": "127.0.0.1", **{k: str(v) for k, v in mine.items()}}
            with (tmp_path / f"log-{number}").open("w") as log:
                command = [sys.executable, __file__, mode, "-"]
                started.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        until = time.monotonic() + 60
        while "ready" not in (tmp_path / "log-0").read_text():
            assert time.monotonic() < until
            assert started[0].poll() is None, (tmp_path / "log-0").read_text()
            time.sleep(0.02)
        return started

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("mode", ["train", "idle"])
def test_a_rank_that_is_killed_ends_the_edge(pair, tmp_path, mode):
    leader, other = pair(mode)
    other.kill()
    assert leader.wait(timeout=60) == 2
    assert re.search(r"training on 2 processes broke off.*is gone.*checkpoint", (tmp_path / "log-0").read_text())


@pytest.mark.parametrize(("mode", "status"), [("train", -9), ("idle", 0), ("raise", 2)])
def test_the_others_end_with_rank_0(pair, tmp_path, mode, status):
    leader, other = pair(mode)
    if status == -9:
        leader.kill()
    elif status == 0:  # as torchrun does: to all of them
        other.terminate()
        time.sleep(0.1)
        leader.terminate()
    assert leader.wait(timeout=60) == status
    assert other.wait(timeout=60) == (2 if status == -9 else 0), (tmp_path / "log-1").read_text()


def test_a_process_that_trains_alone_has_no_world():
    assert multi_gpu.world({}) is None
    assert multi_gpu.world({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}) is None
    assert multi_gpu.world({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}) == (3, 4, 1)
    for wrong in ({"RANK": "4"}, {"RANK": "-1"}, {"RANK": "x"}, {"LOCAL_RANK": ""}, {"WORLD_SIZE": "many"}):
        with pytest.raises(ConfigError, match="WORLD_SIZE"):
            multi_gpu.world({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"} | wrong)


@pytest.mark.parametrize(("size", "samples"), [(2, 0), (2, 1), (3, 64), (4, 61)])
def test_shares_are_even_and_whole(size, samples):
    shares = multi_gpu.World(0, size, 0).shares(samples)
    assert [n for start, end in shares for n in range(start, end)] == list(range(samples))
    counts = [end - start for start, end in shares]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] - counts[-1] <= 1


if __name__ == "__main__":
    try:
        rank(*sys.argv[1:])
    except EmoError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
