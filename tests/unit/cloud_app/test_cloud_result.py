"""What observers are told of a run's result."""

import pytest

from cloud_app.ensemble.model import OVERLAY
from cloud_app.result import for_observers
from emo.wire.messages import RunHistory


def result(boosted, edges=("edge-1", "edge-2"), left_out=(), **accuracy):
    values = {"fl": 0.9, "bagged": 0.95, "bagged_logits": 0.9, "served": 0.95, "boosted": list(boosted)} | accuracy
    return {
        "accuracy": values,
        "edges": {edge: {"steps": 3} for edge in edges},
        "left_out": {OVERLAY + edge: "it answers with NaN" for edge in left_out},
        "version": 2,
        "bytes": 12_000,
        "seconds": 31.5,
        "sfl_bytes": 10**9,
    }


@pytest.mark.parametrize(
    ("given", "pairs"),
    [
        (result([0.8, 0.7]), {"boosted.edge-1": 0.8, "boosted.edge-2": 0.7}),
        (result([0.7], left_out=["edge-1"]), {"boosted.edge-2": 0.7}),
        (result([0.8, 0.7], left_out=["edge-1"]), {"boosted.edge-1": 0.8, "boosted.edge-2": 0.7}),  # only not chosen
        (result([0.7]), {}),  # of which edge?
        (result([], edges=()), {}),
    ],
)
def test_each_pair_under_its_own_edge(given, pairs):
    shown = for_observers(given)
    assert {name: value for name, value in shown.items() if name.startswith("boosted.")} == pairs
    assert shown.keys() - pairs.keys() == {"fl", "bagged", "served", "version", "bytes", "seconds", "sfl_bytes"}
    assert RunHistory("r", 1, (), shown).result == shown


def test_what_was_not_measured_is_not_told_and_many_edges_fit():
    shown = for_observers(result([0.5] * 40, edges=[f"{number:064}" for number in range(40)], fl=None))
    assert "fl" not in shown
    assert len(RunHistory("r", 1, (), shown).result) <= 64
