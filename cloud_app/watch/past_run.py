"""A run that is over, for `emo watch --run`: tells a view what a folder holds of it.

An observer's state_dir has watched.jsonl; a cloud's, and what `emo demo` keeps, events.jsonl and result.json; `emo simulate`
writes plan.json and rounds.jsonl. Files of others: every line is bounded and checked, what cannot be read is counted.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cloud_app.result import for_observers, number
from cloud_app.watch import record
from cloud_app.watch.run_state import valid_id, whole
from cloud_app.watch.view import View
from emo import files
from emo.errors import ConfigError
from emo.journal import Journal
from emo.logs import printable
from emo.runtime.reporter import fitting
from emo.wire.messages import Event, Message, Report, Role, RunHistory, RunState, Status

_LINE = 2 << 20  # bytes; the journal writes 1 MiB at most
_RESULT = 4 << 20
_MOST = 2048  # items of a list in an event
_FEW = 32
_FLEET = "devices"  # the node that stands for all devices of a simulation


def tell(folder: Path, view: View, journal: Journal) -> float:
    """Returns the time of the last that there is. Raises ConfigError: no record, or none that can be read."""
    if (folder / record.NAME).is_file() or (folder / record.BEFORE).is_file():
        last = record.replay(folder, view, journal)
        if last is None:
            raise ConfigError(f"{folder / record.NAME}: holds no line that can be read; is it a record of emo watch?")
        return last
    for name, told in (("plan.json", _simulated), ("events.jsonl", _events)):
        if (folder / name).is_file():
            last = _all(view, told(folder, journal))
            if last is None:
                raise ConfigError(f"{folder / name}: holds nothing of a run that can be read")
            return last
    raise ConfigError(
        f"{folder}: no record of a run: neither watched.jsonl (an observer's state_dir), events.jsonl (a cloud's) nor "
        "plan.json (of emo simulate)"
    )


def _all(view: View, told: Iterable[tuple[float, Message]]) -> float | None:
    last = None
    for now, message in told:
        if last is None:
            view.link(up=True, now=now)
        last = now if last is None else max(last, now)
        view.take(message, last)
    return last


# -- a node's events.jsonl


def _events(folder: Path, journal: Journal) -> Iterator[tuple[float, Message]]:
    """Everybody whom the events name is there from then on."""
    node, role, now = "cloud", _role("cloud"), 0.0
    known: set[str] = set()
    count = damaged = 0
    for line in (*record.lines(folder / "events.1.jsonl", _LINE), *record.lines(folder / "events.jsonl", _LINE)):
        event = _object(line) if len(line) <= _LINE else None
        time = number(event.pop("time", None)) if event else None
        name = event.pop("event", None) if event else None
        if event is None or time is None or not 0 <= time < 1e11 or not isinstance(name, str):
            damaged += 1
            continue
        now = time
        if name == "start" and valid_id(event.get("id")):
            node, role = event["id"], _role(event.get("tier"))
        here: list[tuple[str, Role]] = [(node, role)]
        if role == "cloud":
            here += [(each, "device") for each in _ids(event.get("devices")) + _ids([event.get("device")])]
            here += [(each, "edge") for each in _ids([event.get("edge")])]
        for each, tier in here:
            if each not in known and len(known) < 100_000:
                known.add(each)
                yield now, Status(each, tier, online=True)
        if name == "device_gone" and (gone := valid_id(event.get("device"))):
            known.discard(gone)
            yield now, Status(gone, "device", online=False)
        count += 1
        told = fitting(node, role, count, now, name, event)
        if told is None:
            damaged += 1
        else:
            yield now, told
    if damaged:
        journal.problem("record.damaged", f"{folder}: {damaged} lines of its events cannot be read; they are left out")
    if now:
        yield from ((now, message) for message in _result(folder))


def _result(folder: Path) -> Iterator[Message]:
    """Of result.json, or of run.json, which says less: the run, and its accuracies."""
    result = _file(folder / "result.json") or _file(folder / "run.json")
    run, rounds = valid_id(result.get("run")), number(result.get("rounds"))
    if not run or rounds is None or not isinstance(result.get("accuracy"), dict):
        return
    try:
        yield RunState(run, int(rounds), int(rounds), "done")
        yield RunHistory(
            run, int(rounds), (), {printable(name): value for name, value in for_observers(result).items()}
        )
    except (ValidationError, OverflowError, ValueError):
        return


# -- a simulation's folder


def _simulated(folder: Path, journal: Journal) -> Iterator[tuple[float, Message]]:
    """One device stands for all, since a simulation counts bytes by kind. Its time is virtual, from when it was planned."""
    header = _file(folder / "plan.json")
    plan = header.get("plan")
    if not isinstance(plan, dict):
        raise ConfigError(f"{folder / 'plan.json'}: is no plan of emo simulate")
    began = (folder / "plan.json").stat().st_mtime
    rounds, devices = whole(plan.get("rounds")) or 0, whole(plan.get("devices")) or 0
    asked = json.dumps(
        [plan, header.get("scenario")], sort_keys=True
    ).encode()  # or two of one seed would have one name
    run = f"{printable(plan.get('method'), 20)}-seed-{whole(plan.get('seed')) or 0}-{zlib.crc32(asked):08x}"
    run = run if valid_id(run) else "simulated"
    shares = plan.get("edges")
    edges = [f"edge-{place + 1}" for place in range(min(len(shares), _FEW))] if isinstance(shares, list) else []
    edges = edges if plan.get("method") == "emo" else []
    nodes: list[tuple[str, Role]] = [("cloud", "cloud"), *((edge, "edge") for edge in edges), (_FLEET, "device")]
    for node, role in nodes:
        yield began, Status(node, role, online=True)
    begun = fitting("cloud", "cloud", 0, began, "begun", {"run": run, "settings": _settings(plan)})
    if begun is not None:
        yield began, begun
    yield began, RunState(run, 0, rounds, "training")
    sums: dict[str, float] = {}
    now, damaged, last = began, 0, None
    for line in record.lines(folder / "rounds.jsonl", _LINE):
        row = _object(line) if len(line) <= _LINE else None
        try:
            told = _row(row) if row else None
        except (ValidationError, OverflowError, ValueError, TypeError):
            told = None
        if row is None or told is None:
            damaged += 1
            continue
        now += max(0.0, number(row.get("virtual_s")) or 0.0)
        for kind, count in _traffic(row):
            sums[kind] = sums.get(kind, 0.0) + count
        last, total = told, row.get("total")
        figures = {name: value for name, value in sums.items() if name.startswith(("sent_", "received_"))}
        if isinstance(total, dict):
            figures |= {
                f"tap.{to}": number(total.get(of)) or 0.0 for to, of in (("offered", "attempted"), ("sent", "sent"))
            }
        doing = f"stands for all {devices} devices"
        yield now, Report(_FLEET, "device", run, now, doing=doing, figures=dict(list(figures.items())[:64]))
        steps = row.get("steps")
        for edge, step in zip(edges, steps if isinstance(steps, list) else [], strict=False):
            yield now, Report(edge, "edge", run, now, figures={"overlay.step": number(step) or 0.0})
        yield now, RunState(run, told[0], rounds, "training")
        names = ("round", "accuracy", "loss", "seconds", "updates", "sampled")
        fields: dict[str, Any] = {"run": run, "of": rounds, **dict(zip(names, told, strict=False))}
        yield now, Event("cloud", "cloud", told[0], now, "round", fields)
        yield now, RunHistory(run, rounds, (told,))
    if damaged:
        journal.problem("record.damaged", f"{folder}: {damaged} lines of its rounds cannot be read; they are left out")
    if (folder / "result.json").is_file() and last is not None:
        measured = _file(folder / "result.json").get("accuracies")
        served = _share(measured, "model")
        result: dict[str, float | None] = {"seconds": round(now - began, 3)}
        if edges:
            result |= {"fl": _share(measured, "head"), "bagged": served, "served": served}
            result |= {f"boosted.{edge}": _share(measured, f"overlay-{place}") for place, edge in enumerate(edges, 1)}
        else:
            result["fl"] = served
        yield now, RunState(run, last[0], rounds, "done")
        yield now, RunHistory(run, rounds, (), {name: value for name, value in result.items() if value is not None})


def _settings(plan: Mapping[str, Any]) -> dict[str, Any]:
    """section.key -> value, as a cloud tells them."""
    flat: dict[str, Any] = {}
    for key, value in plan.items():
        inner = {f"{key}.{name}": each for name, each in value.items()} if isinstance(value, dict) else {key: value}
        flat |= {name: json.dumps(each) if isinstance(each, list | dict) else each for name, each in inner.items()}
    return flat


def _row(row: Mapping[str, Any]) -> tuple[int, float | None, float, float, int, int, int, int]:
    accuracy = _share(row.get("accuracies"), "head", "model")
    devices, arrived = whole(row.get("devices")) or 0, whole(row.get("arrived")) or 0
    this = whole(row.get("round")) or 0
    values = this, accuracy, number(row.get("loss")) or 0.0
    told = RunHistory(
        "row", 0, ((*values, number(row.get("virtual_s")) or 0.0, arrived, devices, max(0, devices - arrived), 0),)
    )
    return told.rows[0]


def _share(accuracies: Any, *names: str) -> float | None:
    """Of percents by name the first that is there: `model` is what would be served, `head` the FL model beside an ensemble."""
    told = [number(accuracies.get(name)) for name in names] if isinstance(accuracies, dict) else []
    return next((round(percent / 100, 6) for percent in told if percent is not None), None)


def _traffic(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for link in ("lan", "wan"):
        ways = row.get(link)
        for way, sign in (("up", "sent_bytes"), ("down", "received_bytes")):
            kinds = ways.get(way) if isinstance(ways, dict) else None
            for kind, count in list(kinds.items())[:_FEW] if isinstance(kinds, dict) else ():
                yield f"{sign}.{printable(kind, 32)}", max(0.0, min(number(count) or 0.0, 1e18))


# -- what a file says


def _file(path: Path) -> dict[str, Any]:
    """Empty where there is none, or it is no JSON object."""
    if not path.is_file():
        return {}
    return _object(bytes(files.whole(path, _RESULT, ConfigError))) or {}


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _ids(value: Any) -> list[str]:
    return [each for each in value[:_MOST] if valid_id(each)] if isinstance(value, list) else []


def _role(tier: Any) -> Role:
    return tier if tier in {"device", "edge", "cloud"} else "cloud"
