"""`emo simulate` as a user starts it: stopped by Ctrl-C and gone on with, it ends in the same bits."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnxruntime
import psutil
import pytest

from emo.config import Data
from emo.data import registry
from testbed.simulation.run_folder import Run

EMO = (
    *("simulate", "--method", "emo", "--width", "0.5", "--devices", "6", "--per-round", "3", "--rounds", "4"),
    *("--lr", "0.05", "--evaluate-every", "2", "--replay-ratio", "0.25"),
)


def start(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "emo.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def end(process, code=0):
    out, _ = process.communicate(timeout=170)
    assert process.returncode == code, out
    return out


@pytest.mark.timeout(400)
def test_stopped_and_gone_on_with_by_another_number_of_workers(tmp_path):
    undisturbed = start(*EMO, "--workers", 1, "--out", tmp_path / "whole", "--export", tmp_path / "served.onnx")
    process = start(*EMO, "--workers", 2, "--out", tmp_path / "parts")
    rows = tmp_path / "parts" / "rounds.jsonl"
    deadline = time.monotonic() + 150
    while not (rows.exists() and rows.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert "--resume" in end(process, 130)
    assert psutil.wait_procs(children, timeout=20)[1] == []
    there = len(Run(tmp_path / "parts").rows)
    assert 1 <= there < 4
    lines = end(start("simulate", "--resume", "--json", "--workers", 2, "--out", tmp_path / "parts")).splitlines()
    end(undisturbed)
    rounds = [json.loads(line)["round"] for line in lines if line.startswith('{"round"')]
    assert rounds == list(range(there + 1, 5))

    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    for one, two in zip(whole.rows, parts.rows, strict=True):
        real = {"real_s": 0.0}
        assert one.model_copy(update={**real, "total": one.total.model_copy(update=real)}) == two.model_copy(
            update={**real, "total": two.total.model_copy(update=real)}
        )
    weights = whole.weights(), parts.weights()
    assert weights[0].keys() == weights[1].keys() == {"trunk", "head", "overlay-1", "overlay-2"}
    for part, arrays in weights[0].items():
        for name, array in arrays.items():
            assert array.tobytes() == weights[1][part][name].tobytes(), (part, name)

    _, test = registry.load(Data())
    session = onnxruntime.InferenceSession(tmp_path / "served.onnx")
    (logits,) = session.run(["logits"], {"images": test.images})
    accuracy = 100 * float(np.mean(logits.argmax(1) == test.labels))
    assert accuracy == pytest.approx(whole.result.accuracies["model"], abs=0.3)  # one image of 359
