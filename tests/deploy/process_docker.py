"""`docker`, as far as the playbooks ask for it, with processes in place of containers (scripts/fleet-test).

Knows the compose files of docker/ and the words that the roles use. A service runs the checkout's own `emo`, or
Mosquitto, in a mount namespace of its own: its volumes lie where the container would see them, read-only ones are
read-only, and the process has the container's user. There is no image, no network, no limit of memory, no capability:
what those do is not tried. An image whose name holds "broken" ends at once; what was pulled or loaded is only noted.

    PROCESS_DOCKER=DIR process_docker.py compose up --detach ...     (in the folder of compose.yaml, as the roles call it)
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import yaml

HOME = Path(os.environ["PROCESS_DOCKER"])
REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
COMMANDS = {
    "emo-device": "emo device --config /etc/emo/device.yaml",
    "emo-edge": "emo edge --config /etc/emo/edge.yaml",
    "emo-coordinator": "emo cloud --config /etc/emo/cloud.yaml",
    "emo-endpoint": "emo serve --models /var/lib/emo/models --host 127.0.0.1 --port {port}",
    "eclipse-mosquitto": "/usr/sbin/mosquitto -c /mosquitto/config/mosquitto.conf",
}
# $1: an empty folder, $2: user, $3: "from:to:mode ...", $4: folders that every user may pass, then the command.
_BOX = """
set -e
box=$1 user=$2 volumes=$3 open=$4; shift 4
mount -t tmpfs box "$box"; mkdir "$box/upper" "$box/work" "$box/root"
mount -t overlay box -o "lowerdir=/,upperdir=$box/upper,workdir=$box/work" "$box/root"
for folder in $open; do chmod o+x "$box/root$folder"; done
for folder in proc dev sys tmp; do mount --rbind "/$folder" "$box/root/$folder"; done
for volume in $volumes; do
  IFS=: read -r from to mode <<END
$volume
END
  mkdir -p "$box/root$to"; mount --bind "$from" "$box/root$to"
  [ "$mode" != ro ] || mount -o remount,bind,ro "$box/root$to"
done
mount -o remount,bind,ro "$box/root"
exec chroot --userspec="$user" --groups= "$box/root" "$@"
"""
# The checkout and its Python may lie where only their owner looks; an image's do not.
_OPEN = " ".join(
    {str(folder) for path in (REPOSITORY, BIN, Path(sys.executable).resolve()) for folder in (path, *path.parents)}
)
# `restart: on-failure` or `unless-stopped`. $1: which, $2: where its status goes.
_AGAIN = """
policy=$1 status=$2 wait=1; shift 2
until "$@" && [ "$policy" = on-failure ]; do
  echo failed >"$status"; sleep $wait; [ $wait -ge 16 ] || wait=$((2 * wait))
done
echo 0 >"$status"
"""


def main() -> int:
    args = sys.argv[1:]
    if args[0] == "compose":
        return compose(args[1:])
    match args:
        case ["image", "inspect", *_, name]:
            return 0 if name in known() else 1
        case ["pull", name]:
            note(name)
        case ["load", "--input", path]:
            note(Path(path).read_text().strip())
        case ["login", *_]:
            sys.stdin.read()
        case _:
            sys.exit(f"process_docker: {args} is not among the words that it knows")
    return 0


def known() -> list[str]:
    images = HOME / "images"
    return images.read_text().splitlines() if images.exists() else []


def note(image: str) -> None:
    with (HOME / "images").open("a") as images:  # several hosts at once
        images.write(f"{image}\n")


def compose(args: list[str]) -> int:
    parser = argparse.ArgumentParser()
    words = parser.add_subparsers(dest="word", required=True)
    for word, flags in {
        "up": ["--detach", "--remove-orphans"],
        "down": ["--remove-orphans"],
        "ps": ["--all", "--quiet"],
        "logs": ["--no-color"],
        "kill": [],
        "config": ["--services"],
        "version": [],
    }.items():
        made = words.add_parser(word)
        for flag in flags:
            made.add_argument(flag, action="store_true")
        made.add_argument("--status")
        made.add_argument("--tail", type=int, default=1000)
        made.add_argument("--signal", default="KILL")
        made.add_argument("services", nargs="*")
    exec_ = words.add_parser("exec")
    exec_.add_argument("-T", action="store_true")
    exec_.add_argument("services", nargs=1)
    exec_.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args(args)
    services = [Service(name, spec) for name, spec in load().items()]
    chosen = [service for service in services if not asked.services or service.name in asked.services]
    if getattr(asked, "remove_orphans", False):
        remove_orphans({service.name for service in services})
    match asked.word:
        case "up":
            for service in chosen:
                service.up()
        case "down":
            for service in services:
                service.down()
        case "ps":
            for service in chosen:
                if service.state() == asked.status:
                    print(service.name)
        case "logs":
            for service in chosen:
                print("\n".join(service.log.read_text(errors="replace").splitlines()[-asked.tail :]))
        case "config":
            print("\n".join(service.name for service in services))
        case "kill":
            for service in chosen:
                service.signal(getattr(signal, f"SIG{asked.signal}"))
        case "exec":
            if chosen[0].state() != "running":
                sys.exit(f"service {chosen[0].name} is not running")
            return chosen[0].call(asked.command)
    return 0


def remove_orphans(names: set[str]) -> None:
    """What runs here and is in no compose file any more."""
    for folder in Service("any", {}).folder.parent.glob("*"):
        if folder.name not in names:
            Service(folder.name, {}).down()


def load() -> dict[str, dict]:
    """The services of every file in COMPOSE_FILE, merged, with the variables of .env in them."""
    values = {}
    for line in Path(".env").read_text().splitlines():
        name, sign, value = line.partition("=")
        if sign and not line.startswith("#"):
            values[name] = value

    def value(found: re.Match[str]) -> str:
        name, sign, rest = found["name"], found["sign"] or "", found["rest"] or ""
        if values.get(name):
            return values[name]
        if "?" in sign:
            sys.exit(f"required variable {name} is missing a value: {rest}")
        return rest

    pattern = re.compile(r"\$\{(?P<name>[A-Z_]+)(?:(?P<sign>:?[-?])(?P<rest>[^}]*))?\}")
    services: dict[str, dict] = {}
    for file in values["COMPOSE_FILE"].split(":"):
        for name, spec in yaml.safe_load(pattern.sub(value, Path(file).read_text()))["services"].items():
            services[name] = services.get(name, {}) | spec
    return services


class Service:
    def __init__(self, name: str, spec: dict) -> None:
        self.name, self.spec = name, spec
        self.folder = HOME / hashlib.sha256(str(Path.cwd()).encode()).hexdigest()[:12] / name
        self.log = self.folder / "log"
        self.sum = hashlib.sha256(json.dumps(spec, sort_keys=True, default=str).encode()).hexdigest()

    def up(self) -> None:
        """As compose does it: made anew when its description has changed, started when it does not run."""
        if self.state() == "running" and (self.folder / "sum").read_text() == self.sum:
            print(f" Container {self.name}  Running", file=sys.stderr)
            return
        self.down()
        (self.folder / "box").mkdir(parents=True, exist_ok=True)
        image = self.spec["image"]
        if image not in known():
            sys.exit(f"{image} was neither pulled nor loaded")
        (self.folder / "sum").write_text(self.sum)
        with self.log.open("ab") as log:
            log.write(f"--- {image}\n".encode())
            again = [
                "sh",
                "-c",
                _AGAIN,
                "sh",
                self.spec["restart"],
                str(self.folder / "status"),
                *self.box(self.command(image)),
            ]
            process = subprocess.Popen(
                again,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=self.environ(),
            )
        (self.folder / "pid").write_text(str(process.pid))
        print(f" Container {self.name}  Started", file=sys.stderr)

    def down(self) -> None:
        processes = self.processes()
        for process in processes:  # the shell, which would start it again, first
            self._send(process, signal.SIGTERM)
        for process in psutil.wait_procs(processes, timeout=60)[1]:
            self._send(process, signal.SIGKILL)
        (self.folder / "pid").unlink(missing_ok=True)
        (self.folder / "status").unlink(missing_ok=True)

    def signal(self, number: int) -> None:
        for process in self.processes()[1:]:  # not the shell that starts it again
            self._send(process, number)

    def state(self) -> str:
        if self.processes():
            return "running"
        return "exited" if (self.folder / "status").exists() else "none"

    def call(self, command: list[str]) -> int:
        (self.folder / "call").mkdir(exist_ok=True)
        box = self.box(command, self.folder / "call")
        return subprocess.run(box, env=self.environ(), check=False).returncode

    def processes(self) -> list[psutil.Process]:
        """The shell and what it runs, those that are dead already left out."""
        path = self.folder / "pid"
        if not path.exists():
            return []
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == int(path.read_text()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return sorted(found, key=lambda process: process.pid)

    def command(self, image: str) -> list[str]:
        if "broken" in image:
            return ["sh", "-c", "echo this release cannot start >&2; exit 1"]
        if "command" in self.spec:
            return ["emo", *self.spec["command"]]
        name = image.split("@", maxsplit=1)[0].rpartition("/")[2].split(":")[0]
        port = str(self.spec.get("ports", [""])[0]).split(":")[-2] if name == "emo-endpoint" else ""
        return COMMANDS[name].format(port=port).split()

    def box(self, command: list[str], folder: Path | None = None) -> list[str]:
        default = "1883:1883" if "mosquitto" in self.spec["image"] else "10001:10001"
        user = str(self.spec.get("user", default)) if os.geteuid() == 0 else "0:0"
        volumes = " ".join(self.volume(each) for each in self.spec.get("volumes", []))
        program = BIN / command[0] if command[0] == "emo" else command[0]
        inside = [
            "sh",
            "-c",
            _BOX,
            "sh",
            str(folder or self.folder / "box"),
            user,
            volumes,
            _OPEN,
            str(program),
            *command[1:],
        ]
        return ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), *inside]

    @staticmethod
    def volume(text: str | dict) -> str:
        if isinstance(text, dict):
            return f"{text['source']}:{text['target']}:{'ro' if text.get('read_only') else 'rw'}"
        return text if text.count(":") == 2 else f"{text}:rw"

    @staticmethod
    def environ() -> dict[str, str]:
        own = {
            "PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin",
            "OMP_NUM_THREADS": "1",
            "ORT_DISABLE_TELEMETRY": "1",
        }
        return own | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(REPOSITORY), "HOME": "/tmp"}

    @staticmethod
    def _send(process: psutil.Process, number: int) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


if __name__ == "__main__":
    sys.exit(main())
