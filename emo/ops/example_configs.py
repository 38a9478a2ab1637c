"""`emo init`: example configurations that run as they are: a cloud, two edges, four devices, an observer, one broker here."""

import json
import shlex
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from string import Template

from emo.errors import ConfigError

_EDGES = {"edge-1": ("device-01", "device-02"), "edge-2": ("device-03", "device-04")}


def init(folder: Path) -> list[Path]:
    """Write them to `folder` (made if need be) and print the commands that start them. Returns the files.

    Their folders for state, cache and models are absolute, under `folder`. Raises ConfigError when one of the files exists
    (then none is written), or when `folder` cannot be written.
    """
    folder = folder.absolute()
    texts = {folder / name: text for name, text in _fill(folder)}
    present = [str(path) for path in texts if path.exists()]
    if present:
        raise ConfigError(f"{', '.join(present)}: there already, and not overwritten; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
    except (OSError, UnicodeEncodeError) as error:
        raise ConfigError(f"{folder}: examples cannot be written: {error}") from error
    sys.stdout.write(commands(folder))
    return list(texts)


def commands(folder: Path) -> str:
    """The commands to type, each in a terminal of its own."""
    devices = [f"{device}.yaml" for edge in _EDGES.values() for device in edge]
    steps: dict[str, list[str | Path]] = {
        "an MQTT broker on 127.0.0.1:1883, unless one runs": ["mosquitto", "-p", "1883"],
        "what is not right yet": ["emo", "doctor", "--config", folder / "cloud.yaml"],
        "the cloud": ["emo", "cloud", "--config", folder / "cloud.yaml"],
        **{edge: ["emo", "edge", "--config", folder / f"{edge}.yaml"] for edge in _EDGES},
        "four devices in one process": ["emo", "device", "--config", *(folder / name for name in devices)],
        "a page that shows it all, http://127.0.0.1:8080": ["emo", "watch", "--config", folder / "watch.yaml"],
        "at the end, the model behind HTTP": ["emo", "serve", "--models", folder / "models"],
    }
    return "".join(f"# {what}\n{shlex.join(map(str, words))}\n" for what, words in steps.items())


def _fill(folder: Path) -> Iterator[tuple[str, str]]:
    """(file name, text) of each example."""
    yield "cloud.yaml", _text("cloud", state_dir=folder / "state" / "cloud", models=folder / "models")
    for edge, devices in _EDGES.items():
        state, cache = folder / "state" / edge, folder / "cache" / edge
        names = f"[{', '.join(devices)}]"
        yield f"{edge}.yaml", _text("edge", id=edge, state_dir=state, cache=cache, devices=names)
    pairs = [(device, edge) for edge, devices in _EDGES.items() for device in devices]
    for index, (device, edge) in enumerate(pairs):
        state = folder / "state" / device
        text = _text("device", id=device, edge=edge, state_dir=state, index=index, count=len(pairs))
        yield f"{device}.yaml", text
    yield "watch.yaml", _text("watch", state_dir=folder / "state" / "watch", models=folder / "models")


def _text(kind: str, **values: Path | str | int) -> str:
    template = (resources.files("emo.ops") / "examples" / f"{kind}.yaml").read_text(encoding="utf-8")
    # A JSON string is a YAML string, whatever the folder's name holds.
    quoted = {
        key: json.dumps(str(v), ensure_ascii=False) if isinstance(v, Path) else str(v) for key, v in values.items()
    }
    return Template(template).substitute(quoted)
