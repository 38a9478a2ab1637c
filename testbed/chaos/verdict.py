"""A run of `emo chaos`, judged: reads all that its tiers left behind, and asks the endpoint.

The rules are invariants.py's, what is computed anew is replay.py's.
"""

import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cloud_app.ensemble import run_archive
from cloud_app.ensemble.model import HEAD, TRUNK
from cloud_app.result import OVERLAY
from cloud_app.serving.client import predict
from edge_app.cache.disk import DiskCache
from emo.errors import EmoError
from testbed.chaos import invariants
from testbed.chaos import replay as chaos_replay
from testbed.chaos.fleet import EDGES, Fleet, Plan
from testbed.chaos.hostile import Hostile
from testbed.chaos.invariants import Violation
from testbed.chaos.process import Tier
from testbed.chaos.run import RunRecord
from testbed.chaos.schedule import schedule
from testbed.processes import child

_START_S = 120.0


def check(fleet: Fleet, plan: Plan, seen: RunRecord, hostile: Hostile | None = None) -> list[Violation]:
    """Every violation of what must hold; the fleet has ended, and `hostile`, if it had one."""
    wrong, logs = list[Violation](), dict[str, list[invariants.Event]]()
    for name, folder in fleet.states():
        logs[name], broken = invariants.read(folder / "events.jsonl")
        wrong += broken
    faults = schedule(plan.seed, plan.faults, plan.over_s, fleet.targets())
    full = any((fault.kind, fault.target) == ("disk", "cloud") for fault in faults)
    rounds = invariants.Rounds(logs["cloud"], plan.rounds, plan.strict, full)
    wrong += rounds.violations
    wrong += invariants.devices({name: logs[name] for name in fleet.devices}, rounds)
    steps = max(edge.overlay.checkpoint_steps for edge in fleet.edges.values())
    wrong += invariants.edges({name: logs[name] for name in EDGES}, rounds.run, steps)
    wrong += invariants.ended(seen.finished, seen.exits, seen.stubborn)
    wrong += [Violation("forward", text) for text in seen.backwards]
    printed = {name: _printed(process.log) for name, process in fleet.processes().items()}
    wrong += invariants.quiet(printed)
    whole = {number: rounds.closed[number] for number in _gapless(rounds.closed)}
    held, strange = _cached(fleet, len(whole))
    wrong += strange
    sent = hostile.sent if hostile is not None else None
    again = chaos_replay.replay(fleet.cloud, fleet.devices, whole, held, sent)
    wrong += chaos_replay.cached(held, again)
    parts: Mapping[str, Any] = {}
    if seen.finished:
        try:
            parts = run_archive.read(fleet.cloud.state_dir)[1]
        except EmoError as error:
            wrong.append(Violation("served", str(error)))
        expected = EDGES.keys() - invariants.untrained({name: logs[name] for name in EDGES})
        wrong += _served(fleet, parts, expected)
        if hostile is not None:
            wrong += invariants.unharmed(printed, seen.peaks, _result(fleet), dict(fleet.states()))
    if hostile is not None and hostile.failed:
        wrong.append(Violation("unharmed", f"the hostile node could not do all it was to do: {hostile.failed}"))
    final = {f"{part}.{name}": array for part in (TRUNK, HEAD) for name, array in parts.get(part, {}).items()}
    return wrong + chaos_replay.compare(whole, again, final or None)


def _gapless(closed: Mapping[int, object]) -> range:
    """Rounds 1 to the last before a gap."""
    last = 0
    while last + 1 in closed:
        last += 1
    return range(1, last + 1)


def _cached(fleet: Fleet, rounds: int) -> tuple[dict[chaos_replay.Batch, int], list[Violation]]:
    """What the caches hold, and what in them is damaged or of a round that never was."""
    held, wrong = dict[chaos_replay.Batch, int](), list[Violation]()
    for edge, config in fleet.edges.items():
        with DiskCache(config.cache.dir) as cache:
            for device, batch in list(cache.keys()):
                if device not in fleet.devices:
                    continue  # a hostile one's: nobody can say what it should be
                entry = cache.get(device, batch)
                if entry is not None and 1 <= entry.version // fleet.cloud.training.epochs <= rounds:
                    held[device, batch, entry.version] = chaos_replay.crc(entry.activations)
                elif entry is not None:
                    text = f"{edge}: batch {batch} of {device}, version {entry.version}: there was no such round"
                    wrong.append(Violation("cache", text))
            if damaged := cache.stats()["damaged"]:
                wrong.append(Violation("cache", f"{edge}: {damaged} files are not what their names say"))
    return held, wrong


def _served(fleet: Fleet, parts: Mapping[str, Any], expected: Iterable[str]) -> list[Violation]:
    wrong = []
    lost = sorted(edge for edge in expected if OVERLAY + edge not in parts)
    if lost:
        wrong.append(Violation("served", f"the ensemble is without {', '.join(lost)}"))
    models = str(fleet.cloud.export.models)
    endpoint = Tier("endpoint", fleet.folder, ["serve", "--models", models, "--port", "0"])
    endpoint.start()
    try:
        label, probability = predict(_url(endpoint), "emo", Path(_result(fleet)["sample"]["image"])).labels[0]
        if label not in set("0123456789") or not (math.isfinite(probability) and 0 < probability <= 1):
            wrong.append(Violation("served", f"the endpoint answers {label!r} with {probability}"))
    except (EmoError, OSError, ValueError, KeyError, TypeError) as error:
        wrong.append(Violation("served", f"the endpoint does not answer: {error}"))
    finally:
        endpoint.stop(20)
    return wrong


def _result(fleet: Fleet) -> dict[str, Any]:
    """What the cloud has left. Raises OSError and ValueError where it has not."""
    result: dict[str, Any] = json.loads((fleet.cloud.state_dir / "result.json").read_text(encoding="utf-8"))
    return result


def _url(endpoint: Tier) -> str:
    """Raises TimeoutError with the end of its log."""
    until = time.monotonic() + _START_S
    while time.monotonic() < until and endpoint.alive():
        if url := child.serving_at(endpoint.log):
            return url
        time.sleep(0.1)
    raise TimeoutError(f"it does not start: {_printed(endpoint.log)[-500:]}")


def _printed(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
