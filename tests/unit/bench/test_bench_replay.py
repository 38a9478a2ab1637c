"""`bench.replay` measures what it says, on a few batches."""

import pytest

from bench.replay import measure

pytestmark = pytest.mark.usefixtures("one_thread")


def test_both_ratios_are_of_steps_that_were_made():
    found = measure("vgg6", 0.25, "plain", batches=30, steps=2, turns=3)
    for name in ("fit", "tenth"):
        assert found[f"replay_ratio_{name}"] > 0
        assert found[f"{name}_step_ms"] > 0
    assert 0 <= found["fetched"] <= 1
    assert found["batch_MB"] == pytest.approx((4 * 16 * 64 * 4 * 4 + 8 * 16) / 1e6, abs=0.001)
