"""Opens an ONNX file with onnxruntime, within this process's share of the processors and without telemetry."""

import os
from pathlib import Path

# onnxruntime >= 1.29 reports on Linux, names of models included, unless this stands before its import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

from emo.errors import ServeError


def cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Processors that this process may keep busy: its affinity, cut to the cgroup's quota (v2, then v1)."""
    try:
        mine = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        mine = os.cpu_count() or 1
    quota = _quota(cgroup)
    return mine if quota is None else max(1, min(mine, round(quota)))


def _quota(cgroup: Path) -> float | None:
    v1 = cgroup / "cpu" / "cpu.cfs_quota_us", cgroup / "cpu" / "cpu.cfs_period_us"
    for files in ((cgroup / "cpu.max",), v1):
        try:
            quota, period = " ".join(file.read_text(encoding="ascii") for file in files).split()
            # v2 says "max", v1 says -1 where there is no limit.
            return None if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return None


RunOptions = onnxruntime.RunOptions  # whose `terminate` ends the run that has them, between two nodes


def open_session(path: Path, threads: int | None = None, content: bytes | None = None) -> onnxruntime.InferenceSession:
    """A session on the CPU with `threads` threads in all (`cpus()` when left out). `content`: of the file, where it has
    been read.

    Raises ServeError when the file is missing or is no ONNX model that this onnxruntime can run.
    """
    if not path.is_file():
        raise ServeError(f"{path}: no such file")
    options = onnxruntime.SessionOptions()
    # Left alone it takes the host's processors, not the container's.
    options.intra_op_num_threads = threads or cpus()
    options.inter_op_num_threads = 1
    # Between runs its threads would spin, on the processors that read the next requests.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    try:
        if content is not None:  # weights may lie in other files beside it
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        return onnxruntime.InferenceSession(content or path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no class of their own
        raise ServeError(f"{path}: onnxruntime cannot load it: {' '.join(str(error).split())[:300]}") from error
