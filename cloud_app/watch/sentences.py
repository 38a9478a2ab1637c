"""A sentence for people for each event that a node tells. Fields come from strangers: any may be missing, or something else."""

from collections.abc import Callable, Mapping
from typing import Any

from cloud_app.result import number

_NAMED = 3
_WHY = {
    "offline": "had gone",
    "late": "had not answered in time",
    "refused": "its update was refused",
    "cannot-train": "could not train",
}

Fields = Mapping[str, Any]


def sentence(node: str, tier: str, name: str, fields: Fields, last: str = "") -> str:
    """`last`: the device that answered last, of a closed round."""
    if name == "round":
        return _round(fields, last)
    for who in (tier, ""):
        if made := _MADE.get((who, name)):
            return made(node, fields)
        if said := _SAID.get((who, name)):
            return said.format_map(_Words({"node": node, **fields, "self": node}))
    shown = ", ".join(f"{key} {value}" for key, value in fields.items() if isinstance(value, str | int | float))
    return f"{node}: {name}" + (f" ({shown})" if shown else "")


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def some(names: list[str]) -> str:
    """The first few, and how many more."""
    more = [f"{len(names) - _NAMED} more"] * (len(names) > _NAMED)
    return " and ".join([", ".join(names[:_NAMED]), *more]) if more else ", ".join(names)


def why_left_out(reason: str) -> str:
    return _WHY.get(reason, reason)


def _round(fields: Fields, last: str) -> str:
    accuracy, left_out = number(fields.get("accuracy")), fields.get("left_out")
    parts = [f"{_get(fields, 'updates')} of {_get(fields, 'sampled')} devices"]
    if (seconds := number(fields.get("seconds"))) is not None:
        parts.append(f"{seconds:.1f} s")
    if accuracy is not None:
        parts.append(percent(accuracy))
    if last:
        parts.append(f"{last} was last")
    if isinstance(left_out, dict) and left_out:
        told = [f"{device} ({why_left_out(str(why))})" for device, why in left_out.items()]
        parts.append("without " + some(told))
    elif isinstance(left_out, str):
        parts.append(f"{left_out} left out")
    return f"round {_get(fields, 'round')} of {_get(fields, 'of')} closed: " + ", ".join(parts)


def _get(fields: Fields, name: str) -> str:
    value = fields.get(name)
    return "?" if value is None else str(value)


def _count(value: Any, noun: str) -> str:
    many = len(value) if isinstance(value, list | dict) else str(value).partition(" ")[0]  # "400 of them"
    return f"{many} {noun}" + ("" if many == 1 else "s")


def _opened(_node: str, fields: Fields) -> str:
    return f"round {_get(fields, 'round')} opened: {_count(fields.get('devices', []), 'device')} asked"


def _exported(node: str, fields: Fields) -> str:
    accuracy = number(fields.get("accuracy"))
    text = f"{node} has exported the model, version {_get(fields, 'version')}"
    return text if accuracy is None else f"{text}: {percent(accuracy)}"


def _trained(node: str, fields: Fields) -> str:
    loss = number(fields.get("loss"))
    return f"{node} has trained round {_get(fields, 'round')}" + ("" if loss is None else f", loss {loss:.3f}")


def _resumed(node: str, fields: Fields) -> str:
    if "steps" in fields:
        return f"{node} goes on with its overlay, from step {_get(fields, 'steps')}"
    return f"{node} goes on with run {_get(fields, 'run')}, in round {_get(fields, 'round')}"


class _Words(dict[str, Any]):
    def __missing__(self, name: str) -> str:
        return "?"


_MADE: dict[tuple[str, str], Callable[[str, Fields], str]] = {
    ("", "resumed"): _resumed,
    ("cloud", "opened"): _opened,
    ("cloud", "exported"): _exported,
    ("device", "trained"): _trained,
}
# (tier, or "" for every one; event) -> sentence. {self}: who tells it; the other names are the event's fields.
_SAID = {
    ("", "start"): "{self} has started",
    ("", "problem"): "{self}: {text}",
    ("", "online"): "{self} is here",
    ("", "offline"): "{self} has gone",
    ("", "cannot_train"): "{node} cannot train: {why}",
    ("", "unfit"): "{node} takes no part: {why}",
    ("cloud", "begun"): "run {run} begins: {self} waits for devices",
    ("cloud", "counted"): "{device} has answered round {round} ({samples} samples)",
    ("cloud", "device_gone"): "{device} has gone, in round {round}",
    ("cloud", "overlay"): "the overlay of {edge} has come, {steps} steps",
    ("cloud", "exporting"): "{self} makes the ensemble, and its ONNX file",
    ("cloud", "paused"): "paused: {self} opens no round",
    ("cloud", "unpaused"): "{self} opens rounds again",
    ("edge", "run"): "{self} begins run {run}",
    ("edge", "overlay"): "{self} sends its overlay, after {steps} steps",
    ("edge", "distrusted"): "{self} trains without {device}: the model finds its labels less likely than a guess",
    ("edge", "trusted"): "{self} trains with {device} again",
    ("device", "joined"): "{self} takes part in run {run}",
    ("device", "refused"): "the cloud refused {self}'s update of round {round}: {reason}",
}

PROBLEMS = frozenset({"problem", "cannot_train", "unfit", "refused", "device_gone", "distrusted"})
