"""`emo demo` as a user starts it: real processes, a real broker, a real endpoint, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

FEW = ("--devices", "4", "--rounds", "3", "--seed", "1")


def start(tmp_path: Path, *args: str, **environ: str) -> subprocess.Popen[str]:
    (tmp_path / "tmp").mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "emo.cli", "demo", *args],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp"), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(tmp_path: Path, *args: str, **environ: str) -> tuple[int, str]:
    process = start(tmp_path, *args, **environ)
    try:
        out, _ = process.communicate(timeout=150)
    finally:
        process.kill()
    return process.returncode, out


def left_behind(tmp_path: Path) -> list[str]:
    folders = [path.name for path in (tmp_path / "tmp").iterdir() if path.name.startswith("emo-demo-")]
    mine = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(tmp_path) in line:
            mine.append(line)
    return folders + mine


def test_it_runs_through_and_writes_its_figures(tmp_path, mosquitto_program):
    code, out = run(tmp_path, *FEW, "--json", "figures.json")
    assert code == 0, out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures["accuracy"]) >= {"fl", "boosted", "bagged"}
    assert len(figures["accuracy"]["boosted"]) == 2
    assert set(figures["bytes"]) == {"fl", "activations", "sfl_equivalent"}
    assert all(count > 0 for count in figures["bytes"].values())
    assert 0 < figures["sent_fraction"] <= 1
    assert figures["rounds"] == 3
    assert figures["seconds"] > 0
    assert figures["broker"].startswith("mosquitto")
    assert Path(figures["onnx"]).stat().st_size > 1000
    again = [sys.executable, "-m", "emo.cli", "export", "--run", "runs/demo/run", "--out", "runs/demo/models"]
    exported = subprocess.run(
        [*again, "--head", "--at-least", "none", "--yes", "--json"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    assert len(json.loads(exported.stdout)["members"]) == 3
    assert figures["prediction"]["label"] in "0123456789"
    assert (tmp_path / "runs/demo/sample.png").exists()
    assert "round   3/3" in out
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(("how", "training"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_ctrl_c_leaves_nothing_behind(tmp_path, how, training, mosquitto_program):
    process = start(tmp_path, "--rounds", "500")
    try:
        assert process.stdout is not None
        assert "broker" in process.stdout.readline()
        if training:
            line = process.stdout.readline()
            assert line.startswith("round"), line
        assert left_behind(tmp_path)
        process.send_signal(how)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert left_behind(tmp_path) == []


def test_kill_9_leaves_no_process_behind(tmp_path, mosquitto_program):
    process = start(tmp_path, "--rounds", "500")
    assert process.stdout is not None
    process.stdout.readline()
    assert process.stdout.readline().startswith("round")
    process.kill()
    process.communicate(timeout=10)
    until = time.monotonic() + 30
    while [each for each in left_behind(tmp_path) if not each.startswith("emo-demo-")]:
        assert time.monotonic() < until, left_behind(tmp_path)
        time.sleep(0.2)


def test_your_own_network_and_data_without_mosquitto(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "your-own.md").read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    args = ("--dataset", "mine:motion", "--model", "mine:network", "--alpha", "20", "--broker", "amqtt")
    code, out = run(tmp_path, *FEW, *args, "--json", "figures.json", PYTHONPATH=str(tmp_path))
    assert code == 0, out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["accuracy"]["bagged"] > 0.6
    assert figures["prediction"] is None  # not an image
    assert figures["broker"].startswith("amqtt")
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("--dataset", "cifar10"), "cifar-10-binary.tar.gz"),
        (("--dataset", "digit"), "digits"),
        (("--model", "vgg7"), "vgg6"),
        (("--devices", "1"), "two edges"),
        (("--devices", "5000"), "5000"),
    ],
)
def test_bad_input_is_said_in_words(tmp_path, args, text, mosquitto_program):
    code, out = run(tmp_path, *args)
    assert code == 2
    assert text in out
    assert "Traceback" not in out
    assert left_behind(tmp_path) == []


def test_a_tier_that_dies_is_named_with_its_last_words(tmp_path, mosquitto_program):
    process = start(tmp_path, "--rounds", "500")
    try:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.readline()
        for child in psutil.Process(process.pid).children(recursive=True):
            line = child.cmdline()
            if "/bin/sh" not in line and "edge-2.yaml" in " ".join(line):
                child.kill()
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2
    assert "edge-2 ended with 137" in out
    assert left_behind(tmp_path) == []
