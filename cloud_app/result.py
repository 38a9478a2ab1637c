"""What observers are told of a run's result, out of what the cloud returns and writes to result.json."""

from collections.abc import Mapping
from typing import Any

OVERLAY = "overlay-"  # before an edge's name, of the parts that were left out
_PAIRS = 32
_NAME = 64  # characters, as a message may have


def number(value: Any) -> float | None:
    return None if isinstance(value, bool) or not isinstance(value, int | float) else value


def for_observers(result: Mapping[str, Any]) -> dict[str, float]:
    """Accuracies by name (fl, bagged, served, boosted.EDGE), and what else is a number. What is missing, or no number, is left
    out: a file may hold anything."""
    accuracy, edges, left_out = result.get("accuracy"), result.get("edges"), result.get("left_out")
    accuracy = accuracy if isinstance(accuracy, dict) else {}
    figures = {name: number(accuracy.get(name)) for name in ("fl", "bagged", "served")}
    pairs, boosted = list(edges) if isinstance(edges, dict) else [], accuracy.get("boosted")
    boosted = boosted if isinstance(boosted, list) else []
    if len(pairs) > len(boosted):  # of one whose overlay is of no use there is no pair
        without = left_out if isinstance(left_out, dict) else {}
        pairs = [edge for edge in pairs if OVERLAY + edge not in without]
    if len(pairs) == len(boosted):
        shown = list(zip(pairs, boosted, strict=True))[:_PAIRS]
        figures |= {f"boosted.{edge}": number(value) for edge, value in shown}
    figures |= {name: number(result.get(name)) for name in ("sfl_bytes", "version", "bytes", "seconds")}
    return {name[:_NAME]: value for name, value in figures.items() if value is not None}
