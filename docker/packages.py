"""What an image installs, before its source is there: the packages of one extra, each at its pinned version.

Reads pyproject.toml and constraints.txt in the working directory; needs nothing but Python.

    python3 packages.py pins EXTRA[,EXTRA] TORCH  writes requirements.txt and pins.txt for pip
    python3 packages.py finish VENV [--strip]  checks what was installed against pins.txt, removes what never runs

TORCH is `cpu`, `cuda`, or a version, as `2.13.0+cu130`, for a base image with a JetPack of its own.
"""

import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROJECT = "emo-overlays"
# A Raspberry Pi 4 is ARMv8.0, on which several versions of torch die with SIGILL. This one trains there; on PyPI it is
# the last but one for aarch64 that brings no CUDA.
DEVICE_ARM64 = "2.9.1"
# torch's own tests, headers and tools, and what builds packages; nothing of it is imported where EMO runs.
NEVER_RUNS = (
    *("torch/bin/*[Tt]est*", "torch/bin/protoc*", "torch/include", "torch/share", "torch/test"),
    *("setuptools", "setuptools-*", "pkg_resources", "_distutils_hack", "distutils-precedence.pth"),
    "**/tests",
)
_STRIP_ABOVE = 1 << 20
_LIBRARIES = re.compile(r"\.so(\.[\d.]+)?$")


def torch_pin(extra: str, torch: str, machine: str, version: str) -> str:
    """A pip specifier. `===` takes that very build: neither a +cpu where CUDA is asked for, nor the other way round.

    `version`: that of constraints.txt. `+cpu` comes from PyTorch's own index: what PyPI has for Linux is the CUDA
    build, gigabytes of it, so where that index is not reachable the build has to end, not to go on with another.
    """
    if torch == "cuda":
        return f"==={version}"
    if torch != "cpu":
        return f"=={torch}"
    if extra == "device" and machine == "aarch64":
        return f"==={DEVICE_ARM64}"
    return f"=={version}+cpu"


def requirements(extra: str, project: dict[str, Any]) -> list[str]:
    """Of the project itself and of `extra`, or several with commas, with those of the extras that they name."""
    lines = [*project["dependencies"]]
    for line in (line for each in extra.split(",") for line in project["optional-dependencies"][each]):
        inner = re.fullmatch(rf"{PROJECT}\[([\w,]+)\]", line)
        if inner is None:
            lines.append(line)
        else:
            lines += requirements(inner[1], project)
    return sorted(set(lines))


def pins(extra: str, torch: str) -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = Path("constraints.txt").read_text(encoding="utf-8").split()
    version = next(line.removeprefix("torch==") for line in lines if line.startswith("torch=="))
    lines.remove(f"torch=={version}")
    lines.append("torch" + torch_pin(extra, torch, platform.machine(), version))
    Path("pins.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    Path("requirements.txt").write_text("\n".join(requirements(extra, project)) + "\n", encoding="utf-8")


def unpinned(folder: Path, pins: list[str]) -> Iterator[str]:
    """Packages in `folder` that are not of the version in `pins`."""
    versions = {_name(name): version for name, version in (re.split("={2,3}", pin) for pin in pins)}
    for each in importlib.metadata.distributions(path=[str(folder)]):
        name = _name(each.metadata["Name"])
        wanted = versions.get(name)
        if wanted not in {each.version, each.version.partition("+")[0]}:
            yield f"{name} {each.version} is installed, constraints.txt says {wanted}"


def trim(folder: Path) -> None:
    for pattern in NEVER_RUNS:
        for path in list(folder.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.exists():
                path.unlink()


def strip(folder: Path) -> None:
    """Takes the symbols out of large libraries: 120 MB, torch's most of all. Those in *.libs were rewritten by the tool
    that made the wheel, and some of them do not survive it."""
    for path in folder.rglob("*.so*"):
        bundled = path.relative_to(folder).parts[0].endswith(".libs")
        if _LIBRARIES.search(path.name) and path.stat().st_size > _STRIP_ABOVE and not bundled:
            subprocess.run(["strip", "--strip-unneeded", path], check=True)


def finish(venv: Path, with_strip: bool) -> None:
    (folder,) = venv.glob("lib/python3*/site-packages")
    wrong = list(unpinned(folder, Path("pins.txt").read_text(encoding="utf-8").split()))
    if wrong:
        sys.exit("\n".join(wrong))
    trim(folder)
    if with_strip:
        strip(folder)


def _name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    if sys.argv[1] == "pins":
        pins(*sys.argv[2:4])
    else:
        finish(Path(sys.argv[2]), "--strip" in sys.argv[3:])
