"""`emo doctor`: what on this machine, in a configuration and at its brokers would stop a run, and what to do.

A subprocess tries torch: on some processors to import it is deadly.

    ok    broker wan      127.0.0.1:1883: MQTT 5, answers in 1 ms
    FAIL  torch           ends with SIGILL on this aarch64  -> pin another version: ...
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from emo.config import Broker, CloudConfig, Data, DeviceConfig, EdgeConfig, WatchConfig
from emo.config_file import Node, any_tier, tier
from emo.errors import BrokerError, ConfigError, EmoError
from emo.logs import printable
from emo.mqtt.probe import probe
from emo.ops import broker_checks, tls_checks, trial, watch_checks
from emo.runtime import heartbeat

Tiers = DeviceConfig | EdgeConfig | CloudConfig
Level = Literal["ok", "warn", "FAIL"]

_PACKAGES = {
    "device": ("torch",),
    "edge": ("torch", "h5py"),
    "cloud": ("torch", "onnx", "onnxscript", "onnxruntime", "uvicorn"),
    "observer": ("uvicorn", "starlette", "prometheus_client"),
}
_EXTRAS = {"observer": "watch"}
_NEEDS = {"folder": ("pillow", "PIL")}
_PAHO = (2, 2)
_PIN = "pin another version: torch==2.9.1 is known to run on ARMv8.0, such as a Raspberry Pi 4"
_LOW, _TIGHT = 100 << 20, 1 << 30
_BEAT_S = 30.0  # how old a sign of life may be
_TORCH_S = 180  # a Pi with a slow card

# A step of training, not only the import: the instruction that a processor lacks may hide in a kernel.
_STEP = """
import torch
from emo.local_sgd import Sgd
net = torch.nn.Conv2d(3, 8, 3)
net(torch.rand(2, 3, 8, 8)).relu().sum().backward()
Sgd(net.parameters(), 0.01).step()
print(torch.__version__, "with CUDA" if torch.cuda.is_available() else "on the CPU")
"""


# What the tier itself does before it connects.
_READY = "import runpy, sys; runpy.run_module(sys.argv.pop(1), run_name='__main__')"
_CORRECT = "correct the configuration, the data or your own module: the tier would not start"
_READY_S = 600  # a large dataset, a slow disk


@dataclass(frozen=True)
class Check:
    level: Level
    what: str
    detail: str
    advice: str = ""


def run(config_path: Path | None, as_json: bool) -> int:
    """Print the checks, or one JSON object {"ok": ..., "checks": [...]}. Returns 1 if any is FAIL, else 0."""
    made = []
    for check in checks(config_path):
        made.append(check)
        if not as_json:
            advice = f"  -> {check.advice}" if check.advice else ""
            print(printable(f"{check.level:5} {check.what:15} {check.detail}{advice}"), flush=True)
    failed = any(check.level == "FAIL" for check in made)
    if as_json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in made]}, indent=1))
    return int(failed)


def checks(config_path: Path | None) -> Iterator[Check]:
    """One by one, as they are made. Without a configuration: this machine only."""
    config: Node | None = None
    wrong = None
    if config_path is not None:
        try:
            config = any_tier(config_path)
        except ConfigError as error:
            wrong = error
    yield _python()
    yield _clock(time.time())
    yield from _packages(config)
    torch = None if isinstance(config, WatchConfig) else _torch(config)
    if torch is not None:
        yield torch
    if wrong is not None:
        for line in str(wrong).splitlines():
            yield Check("FAIL", "config", line, "correct it; `emo init DIR` writes examples")
    if config is None or config_path is None:
        return
    yield Check("ok", "config", f"{config_path}: {tier(config)} {config.id}")
    if isinstance(config, WatchConfig):
        for level, what, detail, advice in watch_checks.findings(config, _alive(config)):
            yield Check(level, what, detail, advice)
    else:
        data = [] if isinstance(config, EdgeConfig) else [_data(config.data)]
        yield from data
        if all(check is None or check.level == "ok" for check in (torch, *data)):
            yield _ready(config, config_path)
    for what, folder in _folders(config).items():
        yield _folder(what, folder)
    for names, broker in _brokers(config).items():
        yield from _tls(names, broker, config.id)
        yield from _broker(names, broker, _alive(config, connected=True))


# -- this machine


def _python() -> Check:
    version, bits = platform.python_version(), 8 * struct.calcsize("P")
    if bits != 64:
        return Check("FAIL", "python", f"{version}, {bits} bit", "install a 64-bit system: only it has torch")
    return Check("ok", "python", f"{version}, {platform.machine()}")


def _clock(now: float) -> Check:
    shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    if not 2025 <= time.gmtime(now).tm_year < 2100:
        return Check("FAIL", "clock", shown, "set the clock: timedatectl set-ntp true")
    return Check("ok", "clock", shown)


def _packages(config: Node | None) -> Iterator[Check]:
    paho = _version("paho-mqtt") or "0"
    if tuple(int(part) for part in paho.split(".")[:2]) < _PAHO:
        detail = f"{paho}: drops its own connection on a long payload"
        yield Check("FAIL", "paho-mqtt", detail, "pip install -U paho-mqtt")
    for name, needed in _PACKAGES.items():
        if config is not None and name != tier(config):
            continue
        versions = {package: _version(package) for package in ("paho-mqtt", *needed)}
        missing = [package for package, version in versions.items() if version is None]
        if missing:
            level: Level = "warn" if config is None else "FAIL"
            detail = f"cannot run {'an' if name[0] in 'eo' else 'a'} {name} here, {', '.join(missing)} missing"
            advice = f"if it should: pip install 'emo-overlays[{_EXTRAS.get(name, name)}]'"
            yield Check(level, "packages", detail, advice)
        else:
            yield Check("ok", "packages", f"{name}: " + ", ".join(f"{n} {v}" for n, v in versions.items()))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch(config: Node | None) -> Check:
    level: Level = "warn" if config is None else "FAIL"
    if _version("torch") is None:
        return Check(level, "torch", "not installed", "every tier needs it, but endpoint and observer: see packages")
    try:
        ended = trial.run(["-c", _STEP], _TORCH_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(level, "torch", f"a training step did not end: {error}", "look at memory and swap")
    if ended.status == 0:
        return Check("ok", "torch", f"{ended.stdout.strip()}, trains a step")
    if ended.signal:
        advice = _PIN if ended.lacks_instruction else "out of memory? look at dmesg"
        return Check(level, "torch", f"ends with {ended.signal} on this {platform.machine()}", advice)
    advice = f"install it anew; if that does not help, {_PIN}"
    return Check(level, "torch", ended.last or "no word", advice)


# -- the configuration


def _data(data: Data) -> Check:
    package, module = _NEEDS.get(data.name, ("", ""))
    if module and importlib.util.find_spec(module) is None:
        advice = f"pip install {package}, or 'emo-overlays[device]'"
        return Check("FAIL", "data", f"{data.name} needs {package}, which is not installed", advice)
    if ":" in data.name:
        top = data.name.partition(":")[0].partition(".")[0]
        if not top or importlib.util.find_spec(top) is None:
            return Check("FAIL", "data", f"{data.name}: no module {top!r}", "install it, or set PYTHONPATH")
    if data.dir is None:
        if data.name == "digits" or ":" in data.name:
            return Check("ok", "data", data.name)
        advice = "set it to the folder that holds the data"
        return Check("FAIL", "data", f"{data.name} needs data.dir", advice)
    if not data.dir.is_dir():
        return Check("FAIL", "data", f"data.dir {data.dir} is not a folder", "create it, or correct the path")
    return Check("ok", "data", f"{data.name} in {data.dir}")


def _ready(config: Tiers, path: Path) -> Check:
    """Network and data are read, built and compared as at the tier's start."""
    module = f"{tier(config)}_app.ready"
    try:
        ended = trial.run(["-c", _READY, module, path], _READY_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("FAIL", "start", f"it does not end: {error}", "look at memory, swap and the data's disk")
    try:
        result = json.loads(ended.stdout.strip().splitlines()[-1])
        level: Level = "ok" if result["ok"] else "FAIL"
        return Check(level, "start", str(result["detail"]), "" if result["ok"] else _CORRECT)
    except (ValueError, LookupError, TypeError):
        why = f"it ends with {ended.signal}" if ended.signal else ended.last
    detail = f"{config.model.name}: {why or f'it ends with status {ended.status}'}"
    return Check("FAIL", "start", detail, f"try it: {sys.executable} -m {module} {path}")


def _folders(config: Node) -> dict[str, Path]:
    folders = {"state_dir": config.state_dir}
    if isinstance(config, EdgeConfig):
        folders["cache.dir"] = config.cache.dir
    if isinstance(config, CloudConfig):
        folders["export.models"] = config.export.models
    return folders


def _folder(what: str, folder: Path) -> Check:
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        detail = f"{folder}: {existing} cannot be written"
        return Check("FAIL", what, detail, "change its owner, or name another")
    free = shutil.disk_usage(existing).free
    detail = f"{folder}: {free / (1 << 30):.1f} GiB free"
    if free < _TIGHT:
        return Check("FAIL" if free < _LOW else "warn", what, detail, "make room, or name another disk")
    return Check("ok", what, detail)


# -- its brokers


def _brokers(config: Node) -> dict[str, Broker]:
    """Link -> broker; one that plays both parts is asked once."""
    if isinstance(config, CloudConfig | WatchConfig):
        return {"wan": config.wan}
    if isinstance(config, DeviceConfig) and (config.edge is None or not config.tap.enabled):
        return {"wan": config.wan}
    if config.lan == config.wan:
        return {"wan, lan": config.wan}
    return {"wan": config.wan, "lan": config.lan}


def _alive(config: Node, connected: bool = False) -> bool:
    """Whether the node runs, and, if `connected`, has every broker that it needs."""
    try:
        beat = heartbeat.read(config.state_dir)
    except ConfigError:
        return False
    return beat is not None and not beat.wrong(_BEAT_S, connected)


def _tls(names: str, broker: Broker, name: str) -> Iterator[Check]:
    what = f"tls {names}"
    if broker.tls is None:
        if broker.host not in {"127.0.0.1", "::1", "localhost"}:
            reads, speaks = "anybody on the way reads the password", "anybody may speak for this node"
            detail = f"{broker.host}:{broker.port}: not encrypted, and {reads if broker.username else speaks}"
            yield Check("warn", what, detail, "set tls (docs/security.md)")
        return
    try:
        for level, detail, advice in tls_checks.findings(broker.tls, name):
            yield Check(level, what, detail, advice)
    except EmoError as error:
        yield Check("FAIL", what, str(error))


def _broker(names: str, broker: Broker, connected: bool = False) -> Iterator[Check]:
    what = f"broker {names}"
    if broker.certified and connected:
        # The broker takes the certificate for the client's name: asking would end the node's own connection.
        detail = f"{broker.host}:{broker.port}: this node runs and is connected; not asked for more"
        yield Check("ok", what, detail)
        return
    try:
        probed = probe(broker)
    except (BrokerError, ConfigError) as error:
        yield Check("FAIL", what, str(error), broker_checks.remedy(error, broker))
        return
    for level, detail, advice in broker_checks.findings(broker, probed, "wan" in names):
        yield Check(level, what, detail, advice)
