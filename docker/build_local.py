"""`make images`: builds every image without a container engine and without pulling one, and runs what they hold.

The base is made by debootstrap and given the base's name; buildah builds upon it with chroot isolation; for arm64 under
user-mode emulation. Then docker/checks.py runs the images. Needs root, Debian or Ubuntu, 15 GB below --work.

    python docker/build_local.py [--arch amd64 arm64] [--work DIR] [--keep] [--report FILE]

Packages come from where this machine's pip takes them: its configuration is given to the build as a secret, a
certificate and local folders that it names as volumes. Knows buildah; what an image has to do is known to checks.py.
"""

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import checks
from contain import Image

ROOT = Path(__file__).resolve().parent.parent
BASE = "docker.io/library/debian:12-slim"
SUITE, MIRROR = "bookworm", os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
# (file, target, build arguments) of each image, and where it is built. torch for the edge and the coordinator on arm64
# is in PyTorch's own index only, and `TORCH=cuda` is 5 GB: both are left to a machine that has an engine.
IMAGES: dict[str, tuple[str, str | None, dict[str, str], tuple[str, ...]]] = {
    "device": ("device.Dockerfile", None, {}, ("amd64", "arm64")),
    "edge": ("edge.Dockerfile", None, {"TORCH": "cpu"}, ("amd64",)),
    "coordinator": ("cloud.Dockerfile", "coordinator", {}, ("amd64",)),
    "endpoint": ("cloud.Dockerfile", "endpoint", {}, ("amd64", "arm64")),
}
TOOLS = {"buildah": "buildah", "debootstrap": "debootstrap", "ip": "iproute2", "mosquitto": "mosquitto"}
EMULATION = {"qemu-aarch64-static": "qemu-user-static", "update-binfmts": "binfmt-support"}
_SOURCES = "deb {0} {1} main\ndeb {0} {1}-updates main\ndeb http://deb.debian.org/debian-security {1}-security main\n"


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--arch",
        nargs="+",
        choices=["amd64", "arm64"],
        default=["amd64", "arm64"],
        help="for which processors (both)",
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="built there (a new folder in /var/tmp)")
    parser.add_argument("--keep", action="store_true", help="leave it there: the next build begins with it")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the result there, as Markdown")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("building without a container engine takes root: debootstrap, mounts, user-mode emulation")
    _install(TOOLS | (EMULATION if "arm64" in args.arch and platform.machine() != "aarch64" else {}))
    work = args.work or Path(tempfile.mkdtemp(prefix="emo-images-", dir="/var/tmp"))
    start = time.monotonic()
    stores = {arch: Store(work / arch, arch) for arch in args.arch}
    try:
        images = {}
        for arch, store in stores.items():
            store.base()
            for name, (file, target, arguments, where) in IMAGES.items():
                if arch in where:
                    images[name, arch] = store.build(name, file, target, arguments)
        rows, notes = checks.all_of(images, {arch: store.folder / "base" for arch, store in stores.items()}, say)
        text = _text(args.arch, rows, notes, time.monotonic() - start)
        print(text)
        if args.report is not None:
            args.report.write_text(text, encoding="utf-8")
    finally:
        for store in stores.values():
            store.close()
        if not args.keep:
            _remove(work)
    return int(any(checks.OVER in row for row in rows))


class Store:
    """The base and the images of one architecture, in a storage of their own: there the base can have its name."""

    def __init__(self, folder: Path, arch: str) -> None:
        self.folder, self._arch = folder, arch
        folder.mkdir(parents=True, exist_ok=True)
        self._driver = _driver(folder)
        self._buildah = ["nice", "-n", "5", "buildah", "--root", str(folder / "storage")]
        self._buildah += ["--runroot", str(folder / "run"), "--storage-driver", self._driver]

    def base(self) -> None:
        root = self.folder / "base"
        if not (root / "etc/debian_version").exists():
            say(f"{self._arch}: base by debootstrap ({SUITE})")
            _run(
                ["debootstrap", "--variant=minbase", f"--arch={self._arch}", SUITE, str(root), MIRROR],
                self.folder / "debootstrap.log",
            )
            (root / "etc/apt/sources.list").write_text(_SOURCES.format(MIRROR, SUITE), encoding="utf-8")
            for pattern in ("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*_*", "var/log/*.log"):
                for path in root.glob(pattern):
                    path.unlink()
        if not self._asked("images", "--quiet", "--filter", f"reference={BASE}"):
            container = self._asked("from", "--arch", self._arch, "scratch")
            self._asked("add", "--quiet", container, str(root), "/")
            self._asked("commit", "--quiet", "--format", "docker", "--rm", container, BASE)

    def build(self, name: str, file: str, target: str | None, arguments: dict[str, str]) -> Image:
        say(f"{self._arch}: {name}")
        mirror, conf, volumes = _pip(self.folder)
        arguments = {**arguments, **({"TORCH_INDEX": ""} if mirror else {}), "VERSION": _version()}
        command = [
            *self._buildah,
            "build",
            "--arch",
            self._arch,
            "--isolation",
            "chroot",
            "--format",
            "docker",
        ]
        command += ["--pull-never", "--secret", f"id=pip,src={conf}", "--tag", f"emo-{name}"]
        command += ["--layers"] if self._driver == "overlay" else []  # each a copy of all before it, else
        command += [word for each in volumes for word in ("--volume", each)]
        command += [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
        command += [] if target is None else ["--target", target]
        _run([*command, "--file", f"docker/{file}", "."], self.folder / f"{name}.log")
        container = self._asked("from", "--arch", self._arch, "--pull-never", f"emo-{name}")
        config = json.loads(self._asked("inspect", "--type", "image", f"emo-{name}"))["Docker"]["config"]
        return Image(name, Path(self._asked("mount", container)), config)

    def close(self) -> None:
        subprocess.run([*self._buildah, "rm", "--all"], stdout=subprocess.DEVNULL, check=False)

    def _asked(self, *words: str) -> str:
        done = subprocess.run([*self._buildah, *words], stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout.strip()


def _driver(folder: Path) -> str:
    """overlay where it can be mounted here; vfs, which needs nothing of the kernel, where not."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for each in ("lower", "upper", "work", "all"):
            (Path(name) / each).mkdir()
        options = f"lowerdir={name}/lower,upperdir={name}/upper,workdir={name}/work"
        command = ["mount", "-t", "overlay", "overlay", "-o", options, f"{name}/all"]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return "vfs"
        subprocess.run(["umount", f"{name}/all"], check=True)
    return "overlay"


def _install(tools: dict[str, str]) -> None:
    missing = sorted({package for tool, package in tools.items() if shutil.which(tool) is None})
    if missing:
        say(f"installing {' '.join(missing)}")
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], check=True)
    if "update-binfmts" in tools:
        binfmt = Path("/proc/sys/fs/binfmt_misc")
        if not (binfmt / "register").exists():
            subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(binfmt)], check=True)
        if not (binfmt / "qemu-aarch64").exists():
            subprocess.run(["update-binfmts", "--enable", "qemu-aarch64"], check=True)


def _pip(folder: Path) -> tuple[bool, Path, list[str]]:
    """(is another index than PyPI configured, a pip.conf for the build, volumes that it needs)."""
    out = subprocess.run([sys.executable, "-m", "pip", "config", "list"], stdout=subprocess.PIPE, text=True, check=True)
    lines = re.findall(r"^([\w:]+)\.\.?([\w-]+)='(.*)'$", out.stdout.replace("\\n", " "), re.MULTILINE)
    scopes = ("global", "user", "site", ":env:")  # by weight
    found: dict[str, str] = {key: value for each in scopes for scope, key, value in lines if scope == each}
    names: tuple[str, ...] = ("index-url", "extra-index-url", "find-links", "trusted-host")
    kept = {key: found[key] for key in names if key in found}
    words = [word for value in kept.values() for word in value.split()]
    local = [re.sub("^file://", "", word) for word in words if word.startswith(("/", "file:///"))]
    local = [re.sub("/simple/?$", "", path) for path in local]  # what an index links to may lie beside it
    volumes = [f"{path}:{path}:ro" for path in sorted({str(Path(path).resolve()) for path in local})]
    if "cert" in found:
        volumes.append(f"{found['cert']}:/run/pip-ca.crt:ro")
        kept["cert"] = "/run/pip-ca.crt"
    conf = folder / "pip.conf"
    text = "".join(f"{key} = {value}\n" for key, value in kept.items())
    conf.write_text(f"[global]\n{text}", encoding="utf-8")
    return bool({"index-url", "find-links"} & set(kept)), conf, volumes


def _version() -> str:
    text = (ROOT / "emo/__init__.py").read_text(encoding="utf-8")
    return str(re.findall(r'__version__ = "(.+)"', text)[0])


def _run(command: list[str], log: Path) -> None:
    """Its output goes to `log`. Raises SystemExit with the end of that."""
    with log.open("wb") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, check=False)
    if done.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:]
        sys.exit("\n".join([*last, f"failed: {shlex.join(command)}"]))


def _remove(work: Path) -> None:
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if str(work) in line]
    if mounted:  # a bind mount would be emptied with it
        say(f"{work} is left: {', '.join(mounted)} is still mounted")
    else:
        shutil.rmtree(work)


def _text(archs: list[str], rows: list[str], notes: list[str], seconds: float) -> str:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False
    )
    return "\n".join(_lines(archs, rows, notes, seconds, commit.stdout.strip() or "unknown")) + "\n"


def _lines(archs: list[str], rows: list[str], notes: list[str], seconds: float, commit: str) -> Iterator[str]:
    yield "# Images: do they build and run, and how large are they?"
    yield ""
    yield f"    make images      (python docker/build_local.py --arch {' '.join(archs)})"
    yield ""
    yield f"{os.cpu_count()} cores, {platform.machine()}, {_system()}; commit {commit}, {time.strftime('%B %Y', time.gmtime())};"
    yield f"{seconds / 60:.0f} minutes. No container engine: buildah with chroot isolation, a base made by debootstrap"
    yield f"({SUITE}), arm64 under QEMU's user-mode emulation, Mosquitto of this machine."
    yield ""
    yield "| image | architecture | MB beyond its base | of it, ours (an upgrade's layer) | base, MB | torch |"
    yield "|---|---|---|---|---|---|"
    yield from rows
    yield ""
    yield "MB: 10^6 bytes, unpacked, each file counted once. What was run, each with a read-only root, as uid 10001, without"
    yield "capabilities, and with /tmp and its own folder to write to:"
    yield ""
    yield from (f"- {note}" for note in notes)
    yield ""
    yield "Not run by this: Docker, buildx and compose themselves (the compose files are held to the specification's schema, and what"
    yield "they run was run out of the images as they say); the edge with CUDA; edge and coordinator for arm64 (their torch is in"
    yield "PyTorch's own index only); a Raspberry Pi, a Jetson."


def _system() -> str:
    text = Path("/etc/os-release").read_text(encoding="utf-8")
    return str(re.findall(r'^PRETTY_NAME="(.*)"', text, re.MULTILINE)[0])


if __name__ == "__main__":
    sys.exit(main())
