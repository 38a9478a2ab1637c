"""What an image has to do before it is let out: run by build_local.py, each image as contain.py runs it.

Every image: small, and nothing in it that builds. Device: the self-test. Then all tiers together out of their images,
with docker/dev's configuration: rounds, an ensemble, the endpoint that serves it and is asked; health checks on the way.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from contain import Image, Place, Service, command, health, run

STATE = "/var/lib/emo"
DEV = Path(__file__).resolve().parent / "dev"
BUILDS = (
    "gcc",
    "cc",
    "ld",
    "strip",
    "make",
    "git",
    "pip",
    "pip3",
)  # names in the last stage that must not be
LIMITS = {"device": 700, "endpoint": 400}  # MB beyond the base
OVER = "OVER the limit of"
ROUNDS = 3
_SELFTEST_S, _RUN_S, _READY_S, _STOP_S = 900, 600, 300, 60
_LINK = {"EMO_WAN__HOST": "127.0.0.1"}  # no names are served here
_EDGES = {"edge-1": ("device-01", "device-02"), "edge-2": ("device-03", "device-04")}

Say = Callable[[str], None]
Images = Mapping[tuple[str, str], Image]


def all_of(images: Images, bases: Mapping[str, Path], say: Say) -> tuple[list[str], list[str]]:
    """(rows of the table, notes) for the report. Ends the program with a sentence where something is not right; a size
    over its limit is a row that says so, with OVER."""
    rows, notes = [], []
    for (name, arch), image in sorted(images.items()):
        rows.append(_sizes(name, arch, image, bases[arch]))
        say(rows[-1])
        _no_builders(image)
    for (name, arch), image in sorted(images.items()):
        if name == "device":
            notes.append(f"device, {arch}: {_selftest(image)}")
            say(notes[-1])
    with tempfile.TemporaryDirectory(prefix="emo-run-", dir="/var/tmp") as folder, _network() as netns:
        if all((name, "amd64") in images for name in ("device", "edge", "coordinator", "endpoint")):
            notes += _together(images, Path(folder), netns, say)
            for arch in sorted(arch for name, arch in images if name == "endpoint"):
                notes.append(f"endpoint, {arch}: {_asked(images['endpoint', arch], Path(folder), netns)}")
                say(notes[-1])
    return rows, notes


def _sizes(name: str, arch: str, image: Image, base: Path) -> str:
    beyond, under = _mb(image.root) - _mb(base), _mb(base)
    limit = LIMITS.get(name)
    aim = "" if limit is None else f" (below {limit})" if beyond < limit else f" ({OVER} {limit})"
    torch = next(image.root.glob("opt/emo/lib/python3*/site-packages/torch-*.dist-info"), None)
    version = "none" if torch is None else torch.name.removeprefix("torch-").removesuffix(".dist-info")
    return f"| {name} | {arch} | {beyond}{aim} | {_mb(image.root / 'opt/app')} | {under} | {version} |"


def _mb(folder: Path) -> int:
    done = subprocess.run(
        [
            "du",
            "--summarize",
            "--one-file-system",
            "--apparent-size",
            "--block-size=1",
            str(folder.resolve()),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return round(int(done.stdout.split()[0]) / 1e6)


def _no_builders(image: Image) -> None:
    folders = ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "opt/emo/bin", "opt/app/bin")
    there = [f"{folder}/{name}" for folder in folders for name in BUILDS if (image.root / folder / name).exists()]
    if there:
        sys.exit(f"{image.name} holds what builds: {', '.join(there)}")


def _selftest(image: Image) -> str:
    found = json.loads(run(image, Place(), command(image, "selftest", "--json"), _SELFTEST_S))
    return (
        f"`emo selftest` trained a step of {found['model']} with torch {found['torch']} on {found['machine']} "
        f"(loss {found['loss']:.3f}); {found['raw_bytes']:,} bytes of activations went as {found['bytes']:,} in "
        f"{found['frames']} frame and came back"
    )


@contextlib.contextmanager
def _network() -> Iterator[str]:
    """A network of its own, so that no port of this machine is in the way."""
    name = f"emo-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)


def _own(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.chown(folder, 10001, 10001)
    return folder


def _services(images: Images, folder: Path, netns: str) -> Iterator[tuple[str, Image, Place]]:
    """(name, image, place) of every process in docker/compose.yaml but broker and endpoint."""

    def place(name: str, **environ: str) -> Place:
        mounts = {"/etc/emo": (DEV, False), STATE: (_own(folder / name), True)}
        return Place(mounts, {**_LINK, **environ}, netns)

    yield "cloud", images["coordinator", "amd64"], place("cloud", EMO_ROUNDS__ROUNDS=str(ROUNDS))
    endpoint, named = images["endpoint", "amd64"], ["--config", "/etc/emo/watch.yaml"]
    as_watch = {
        "Cmd": ["watch", *named],
        "Healthcheck": {"Test": ["CMD", "emo", "health", *named]},
    }  # says its compose file
    yield "watch", dataclasses.replace(endpoint, config={**endpoint.config, **as_watch}), place("watch")
    index = 0
    for edge, devices in _EDGES.items():
        lan = {"EMO_LAN__HOST": "127.0.0.1"}
        yield edge, images["edge", "amd64"], place(edge, EMO_ID=edge, EMO_DEVICES=json.dumps(devices), **lan)
        for device in devices:
            environ = {"EMO_ID": device, "EMO_EDGE": edge, "EMO_PARTITION__INDEX": str(index), **lan}
            yield device, images["device", "amd64"], place(device, **environ)
            index += 1


def _together(images: Images, folder: Path, netns: str, say: Say) -> Iterator[str]:
    """The run of docker/compose.yaml, shortened. Notes for the report."""
    folder.chmod(0o755)
    broker = subprocess.Popen(
        ["ip", "netns", "exec", netns, "mosquitto", "-c", str(DEV / "mosquitto.conf")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    running: dict[str, Service] = {}
    try:
        for name, image, place in _services(images, folder, netns):
            running[name] = Service(image, place, folder / f"{name}.log")
        say(f"running: {', '.join(running)}")
        well: set[str] = set()
        deadline = time.monotonic() + _RUN_S
        while (code := running["cloud"].ended()) is None:
            _fail(
                running,
                [name for name, each in running.items() if name != "cloud" and each.ended() is not None],
            )
            if time.monotonic() > deadline:
                _fail(running, ["cloud"])
            well |= {name for name, each in running.items() if name not in well and health(each.image, each.place)}
            time.sleep(2)
        if code or set(running) - well:
            _fail(running, sorted(set(running) - well) or ["cloud"])
        result = json.loads((folder / "cloud/state/result.json").read_text(encoding="utf-8"))
        codes = {name: each.stop(_STOP_S) for name, each in running.items() if name != "cloud"}
        if any(codes.values()):
            _fail(running, [name for name, code in codes.items() if code])
        yield (
            f"all together, amd64 (docker/dev): {ROUNDS} rounds of 4 devices with 2 edges, watched, ensemble exported, "
            f"accuracy {result['accuracy']['served']:.1%}; every health check passed, SIGTERM ended every process with 0"
        )
    finally:
        for each in running.values():
            each.stop(_STOP_S)
        broker.terminate()
        broker.wait()


def _fail(running: Mapping[str, Service], names: list[str]) -> None:
    for name in names:
        lines = running[name].log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:]
        sys.exit("\n".join([*lines, f"{name} did not do what it had to (status {running[name].ended()})"]))


def _asked(image: Image, folder: Path, netns: str) -> str:
    """One request to the endpoint that serves what the run exported."""
    models = {f"{STATE}/models": (folder / "cloud/models", False)}
    service = Service(image, Place(models, netns=netns), folder / "endpoint.log")
    try:
        deadline = time.monotonic() + _READY_S
        while not health(image, service.place):
            if service.ended() is not None or time.monotonic() > deadline:
                _fail({"endpoint": service}, ["endpoint"])
            time.sleep(1)
        asking = Place({**models, "/data": (folder / "cloud/state", False)}, netns=netns)
        words = command(image, "predict", "/data/sample.png", "--json")
        first = json.loads(run(image, asking, words, _READY_S))[0]
        if service.stop(_STOP_S):
            _fail({"endpoint": service}, ["endpoint"])
    finally:
        service.stop(_STOP_S)
    return f"ready by its health check, asked for a sample's label, answered {first['label']!r} ({first['probability']:.1%})"
