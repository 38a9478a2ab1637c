"""`emo demo` as a user starts it: real processes, a real broker, a real endpoint, and nothing left behind."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
import pytest
from chromium import PROGRAM, Chromium

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


def lines_until(process: subprocess.Popen[str], words: str) -> list[str]:
    """What it prints, up to the line that begins so."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if line.startswith(words):
            return lines
    raise AssertionError("\n".join(lines))


def watcher(process: subprocess.Popen[str]) -> psutil.Process:
    """Not the shell that looks after it."""
    (found,) = (
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "/bin/sh" not in child.cmdline() and "watch.yaml" in " ".join(child.cmdline())
    )
    return found


def asked(url: str, body: bytes | None = None) -> dict:
    with urlopen(Request(url, body), timeout=20) as answer:
        return json.load(answer)


def left_behind(tmp_path: Path) -> list[str]:
    folders = [path.name for path in (tmp_path / "tmp").iterdir() if path.name.startswith("emo-demo-")]
    mine = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(tmp_path) in line:
            mine.append(line)
    return folders + mine


def drawn(page: str, profile: Path) -> dict[str, Any]:
    """What a browser shows at `page` when a 0 was drawn there: accuracies of FL and ensemble, each member's best label."""
    with closing(Chromium(profile, height=2200)) as tab:
        tab.open(page)
        tab.until("document.querySelector('#try').hasAttribute('data-alive') && !document.querySelector('#try').hidden")
        box = "(box => [box.left, box.top, box.width])(document.querySelector('#draw').getBoundingClientRect())"
        left, top, side = tab.look(box)
        for turn in range(31):
            x, y = (math.sin(turn / 30 * math.tau), math.cos(turn / 30 * math.tau))
            kind = {0: "mousePressed", 30: "mouseReleased"}.get(turn, "mouseMoved")
            where = {"x": left + side * (0.5 + 0.2 * x), "y": top + side * (0.5 + 0.35 * y)}
            tab.do("Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **where)
        tab.until("document.querySelectorAll('.answer').length == 4")
        names, labels = (tab.text(f".answer > {each}").split("\n") for each in ("h3", ".label"))
        accuracy = [tab.text(f".of-{which} strong") for which in ("fl", "ensemble")]
        return {"accuracy": accuracy, "answers": dict(zip(names, labels, strict=True))}


def test_it_runs_through_and_writes_its_figures_and_shows_itself_to_the_end(tmp_path, mosquitto_program):
    process = start(tmp_path, *FEW, "--json", "figures.json", "--keep")
    try:
        lines = lines_until(process, "the endpoint stays")
        assert lines[0].startswith("broker mosquitto")
        assert re.fullmatch(r"page: http://127\.0\.0\.1:[0-9]+/", lines[1])
        page = lines[1].removeprefix("page: ")
        until = time.monotonic() + 30
        while not (state := asked(page + "api/state"))["endpoint"]["alive"]:
            assert time.monotonic() < until, state
            time.sleep(0.2)
        tried = asked(page + "api/try", (tmp_path / "runs/demo/sample.png").read_bytes())
        shown = drawn(page, tmp_path / "browser") if PROGRAM else {}
        with urlopen(page + "api/events", timeout=20) as open_page:
            assert open_page.readline() == b"event: state\n"
            process.send_signal(signal.SIGINT)
            more, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, more
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (state["phase"], state["round"], state["rounds"]) == ("done", 3, 3)
    assert state["accuracy"] == state["result"]["fl"] == figures["accuracy"]["fl"]
    assert state["result"]["bagged"] == figures["accuracy"]["bagged"]
    answers = {answer["name"]: answer["labels"][0][0] for answer in tried["answers"]}
    assert set(answers) == {"FL model", "pair edge-1", "pair edge-2", "ensemble"}
    assert answers["ensemble"] == figures["prediction"]["label"]
    assert {node["id"] for node in state["nodes"]} >= {"cloud", "edge-1", "edge-2", "device-00", "device-03"}
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
    assert (tmp_path / "runs/demo/run/watched.jsonl").stat().st_size > 1000  # for emo watch --run
    assert figures["prediction"]["label"] in "0123456789"
    assert (tmp_path / "runs/demo/sample.png").exists()
    assert [line[:11] for line in lines if line.startswith("round")] == ["round   1/3", "round   2/3", "round   3/3"]
    assert left_behind(tmp_path) == []
    if PROGRAM is None:
        pytest.skip("no chromium on PATH (apt install chromium): all but what a browser shows was looked at")
    measured = [100 * figures["accuracy"][which] for which in ("fl", "bagged")]
    assert [float(each.removesuffix(" %")) for each in shown["accuracy"]] == pytest.approx(measured, abs=0.051)
    assert set(shown["answers"]) == set(answers)
    assert shown["answers"]["ensemble"] == "0"


@pytest.mark.parametrize(("how", "training"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_ctrl_c_leaves_nothing_behind(tmp_path, how, training, mosquitto_program):
    process = start(tmp_path, "--rounds", "500")
    try:
        assert process.stdout is not None
        assert "broker" in process.stdout.readline()
        if training:
            lines_until(process, "round")
        assert left_behind(tmp_path)
        process.send_signal(how)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert left_behind(tmp_path) == []


def test_kill_9_leaves_no_process_behind(tmp_path, mosquitto_program):
    process = start(tmp_path, "--rounds", "500")
    lines_until(process, "round")
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
    process = start(tmp_path, *FEW, *args, "--json", "figures.json", PYTHONPATH=str(tmp_path))
    try:
        lines_until(process, "page: ")
        watcher(process).kill()  # nobody needs it
        out, _ = process.communicate(timeout=150)
    finally:
        process.kill()
    assert process.returncode == 0, out
    assert not (tmp_path / "runs/demo/run/watched.jsonl").exists()
    assert (tmp_path / "runs/demo/run/events.jsonl").exists()
    assert out.count("no page any more, the demo goes on: watch ended with 137") == 1
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
        (("--page-port", "70000"), "65535"),
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
        lines_until(process, "round")
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
