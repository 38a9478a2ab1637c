"""The bench of the shared trunk: its parts are those of the ensemble, and its ratios are of its own milliseconds."""

import pytest

from bench import trunk
from emo.config import Model


def test_ratios_are_of_the_times_beside_them():
    found = trunk.measure(Model(name="cnn", width=0.25, norm="none"), members=3, batch=2, threads=1, runs=2)
    parts = found["trunk_ms"] + 3 * found["member_ms"]
    assert found["shared_trunk_ratio"] == pytest.approx(found["ensemble_ms"] / parts, rel=0.1)
    assert found["separate_ratio"] == pytest.approx(found["ensemble_ms"] / (3 * found["pair_ms"]), rel=0.1)
