"""Runs the playbooks of ansible/ as an operator does, and reads what they say."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ANSIBLE = Path(__file__).resolve().parents[2] / "ansible"
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Played:
    """`hosts`: what the recap says of each, as {"ok": 3, "changed": 0, ...}."""

    code: int
    text: str
    hosts: dict[str, dict[str, int]]

    @property
    def changed(self) -> dict[str, int]:
        return {host: counts["changed"] for host, counts in self.hosts.items() if counts["changed"]}


def environ(home: Path) -> dict[str, str]:
    """With nothing of the developer's own Ansible settings, and `home` for what it leaves behind."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "EMO_"))}
    path = f"{BIN}:/usr/sbin:/sbin:{own.get('PATH', '')}"
    return own | {"PATH": path, "ANSIBLE_HOME": str(home), "ANSIBLE_LOCALHOST_WARNING": "false", "LC_ALL": "C.UTF-8",
                  "ANSIBLE_NOCOLOR": "true", "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false"}  # fmt: skip


def play(book: str | Path, inventory: Path, home: Path, *args: str, prefix: tuple[str, ...] = ()) -> Played:
    """`book`: the name of one of ansible/playbooks, or a file."""
    path = f"playbooks/{book}.yml" if isinstance(book, str) else book
    command = [*prefix, BIN / "ansible-playbook", "-i", inventory, path, *args]
    found = subprocess.run(
        command,
        cwd=ANSIBLE,
        env=environ(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    recap = found.stdout.rpartition("PLAY RECAP")[2]
    rows = re.findall(r"^(\S+) +: +(ok=.*)$", recap, re.MULTILINE)
    hosts = {host: {key: int(n) for key, n in re.findall(r"(\w+)=(\d+)", counts)} for host, counts in rows}
    return Played(found.returncode, found.stdout + found.stderr, hosts)
