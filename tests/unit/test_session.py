"""The container's processors, and nothing leaves the machine."""

import os
import subprocess
import sys

import pytest

from cloud_app.session import cpus, open_session
from emo.errors import ServeError

MINE = len(os.sched_getaffinity(0))


def test_all_processors_of_this_process_where_no_quota_stands(tmp_path):
    assert cpus(tmp_path) == MINE
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cpus(tmp_path) == MINE


@pytest.mark.parametrize(
    ("quota", "expected"), [("100000 100000", 1), ("50000 100000", 1), ("9900000 100000", MINE)]
)
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
        "import cloud_app.session"
    )
    env = {**os.environ, "ORT_DISABLE_TELEMETRY": "0"}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert out.stdout == "onnxruntime 1\n"


def test_the_serving_side_imports_neither_torch_nor_onnx():
    code = (
        "import sys; import cloud_app.endpoint, cloud_app.predict, cloud_app.repository; "
        "print({'torch', 'onnx', 'h5py', 'sklearn'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "set()\n"


def test_a_missing_and_a_broken_model_file_are_named(tmp_path):
    with pytest.raises(ServeError, match=r"none\.onnx: no such file"):
        open_session(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a protobuf")
    with pytest.raises(ServeError, match=r"bad\.onnx: onnxruntime cannot load it"):
        open_session(tmp_path / "bad.onnx")
