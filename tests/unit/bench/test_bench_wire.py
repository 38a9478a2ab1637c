"""`python -m bench.wire --json FILE` measures every codec, on the wire's own bytes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from emo.config import CODECS


def test_every_codec_is_measured(tmp_path):
    out = tmp_path / "wire.json"
    options = "--batches 250 --lr 0.05 --change 0.2 --coded 2 --turns 1 --json"
    command = [sys.executable, "-m", "bench.wire", *options.split(), str(out)]
    printed = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, check=True).stdout
    found = json.loads(out.read_text())
    raw, change = found["setting"]["raw_bytes"], found["setting"]["change"]
    rows = {row["name"]: row for row in found["codecs"]}
    assert list(rows) == list(CODECS)
    assert 0.2 <= change < 0.6
    for name, row in rows.items():
        assert name.encode() in printed
        assert row["ratio"] == pytest.approx(raw / row["encoded_bytes"], rel=0.01)
        assert row["encoded_bytes"] + 36 < row["frame_bytes"] < row["encoded_bytes"] + 250
        assert row["encode_MBps"] > 0
        assert row["decode_MBps"] > 0
    errors = [rows[name]["relative_l2"] for name in ("fp32", "fp16", "int8", "int4", "int3", "int2")]
    assert errors == sorted(errors)
    assert errors[0] == 0
    assert rows["int2-delta"]["deltas"] == 1
    assert rows["int2-delta"]["ratio"] > rows["int2"]["ratio"]
