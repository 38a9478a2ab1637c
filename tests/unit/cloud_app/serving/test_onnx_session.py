"""The container's processors, and nothing leaves the machine."""

import os
import platform
import signal
import subprocess
import sys

import pytest

from cloud_app.serving.onnx_session import cpus, open_session
from emo.errors import ServeError

MINE = len(os.sched_getaffinity(0))


def test_all_processors_of_this_process_where_no_quota_stands(tmp_path):
    assert cpus(tmp_path) == MINE
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cpus(tmp_path) == MINE


@pytest.mark.parametrize(("quota", "expected"), [("100000 100000", 1), ("50000 100000", 1), ("9900000 100000", MINE)])
def test_a_cgroup_v2_quota_is_a_ceiling(tmp_path, quota, expected):
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert cpus(tmp_path) == expected


def test_a_cgroup_v1_quota_is_a_ceiling(tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")
    assert cpus(tmp_path) == 1
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert cpus(tmp_path) == MINE


@pytest.mark.parametrize("content", ["", "garbage", "1 0", "1 2 3"])
def test_an_unreadable_quota_is_none(tmp_path, content):
    (tmp_path / "cpu.max").write_text(content)
    assert cpus(tmp_path) == MINE


def test_telemetry_is_off_before_onnxruntime_is_imported():
    code = (
        "import sys, os; "
        "assert 'onnxruntime' not in sys.modules; "
        "sys.meta_path.insert(0, type('F', (), {'find_spec': staticmethod("
        "lambda name, *_: print(name, os.environ['ORT_DISABLE_TELEMETRY']) if name == 'onnxruntime' else None)})); "
        "import cloud_app.serving.onnx_session"
    )
    env = {**os.environ, "ORT_DISABLE_TELEMETRY": "0"}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert out.stdout == "onnxruntime 1\n"


# Any socket but a local one ends the process, in whichever thread and language it is asked for. The filter is
# classic BPF (linux/filter.h): load the syscall's number; socket? load its first argument; AF_UNIX? else kill.
SEALED = """
import ctypes, platform, struct, sys, time
number = {"x86_64": 41, "aarch64": 198}[platform.machine()]
steps = [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16), (0x15, 1, 0, 1), (0x06, 0, 0, 0x80000000), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
program = Program(len(steps), ctypes.cast(code, ctypes.c_void_p))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # no new privileges
assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0, ctypes.get_errno()  # seccomp, filter
"""


def sealed(code):
    return subprocess.run(
        [sys.executable, "-c", SEALED + code], check=False, capture_output=True, text=True, timeout=120
    )


@pytest.mark.skipif(platform.machine() not in {"x86_64", "aarch64"} or sys.platform != "linux", reason="Linux seccomp")
def test_nothing_tries_to_leave_the_machine(tmp_path):
    from test_known_answer import write

    path = str(write(tmp_path / "m.onnx"))
    use = f"""
from pathlib import Path
import numpy as np
from cloud_app.serving.onnx_session import open_session
session = open_session(Path({path!r}), 1)
session.run(None, {{"images": np.zeros((1, 2), np.float32)}})
time.sleep(1)  # a report would come from a thread of its own
del session
print("done")
"""
    found = sealed(use)
    assert (found.returncode, found.stdout) == (0, "done\n"), found.stderr
    tried = sealed("import socket; socket.socket(socket.AF_UNIX); socket.socket(socket.AF_INET); print('open')")
    assert (tried.returncode, tried.stdout) == (-signal.SIGSYS, "")


ABSENT = """
import sys
absent = {"torch", "onnx", "onnxscript", "h5py", "sklearn", "fastapi", "paho"}
class Absent:
    @staticmethod
    def find_spec(name, *_):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Absent)
"""


def test_the_serving_side_works_where_torch_is_absent(tmp_path):
    from test_known_answer import LABELS, write

    from cloud_app.serving import known_answer
    from cloud_app.serving.repository import Repository

    onnx = write(tmp_path / "m.onnx")
    Repository(tmp_path / "models").add("two", onnx, LABELS, (2,), "float32", known_answer.make(onnx))
    code = f"""{ABSENT}
from pathlib import Path
import cloud_app.serving.client
from cloud_app.serving.http.server import Options, app
endpoint, models = app(Path({str(tmp_path / "models")!r}), Options(threads=1))
body = b'{{"inputs": [{{"name": "images", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}}]}}'
print(models.find("two", None).served.infer(body).decode())
import emo.cli
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert '"model_version": "1"' in out.stdout
    refused = subprocess.run(
        [sys.executable, "-c", ABSENT + "import torch"], check=False, capture_output=True, text=True
    )
    assert "No module named 'torch'" in refused.stderr


def test_a_missing_and_a_broken_model_file_are_named(tmp_path):
    with pytest.raises(ServeError, match=r"none\.onnx: no such file"):
        open_session(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a protobuf")
    with pytest.raises(ServeError, match=r"bad\.onnx: onnxruntime cannot load it"):
        open_session(tmp_path / "bad.onnx")
