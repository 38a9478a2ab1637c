"""`make fleet-test`, second part: `base` and `docker_engine` on a bare Debian 13, made by debootstrap, in a chroot.

Packages are really installed; nothing is started, since no init runs there. Skipped without root, debootstrap, or a
Debian mirror (DEBIAN_MIRROR, else Debian's own).
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import playbooks
import pytest
import yaml

MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
# Ansible's ssh plugin, with a chroot at the other end: the last argument is the command, the one before it the host.
_SSH = """#!/bin/sh
while [ $# -gt 2 ]; do shift; done
exec chroot "{root}" /bin/sh -c "$2"
"""


@pytest.fixture(scope="module")
def debian():
    if os.geteuid() != 0 or shutil.which("debootstrap", path="/usr/sbin:/usr/bin") is None:
        pytest.skip("a bare Debian takes root and debootstrap (apt-get install debootstrap)")
    folder = Path(tempfile.mkdtemp(prefix="emo-debian-"))
    root = folder / "root"
    try:
        command = [
            "/usr/sbin/debootstrap",
            "--variant=minbase",
            "--include=python3,python3-apt",
            "trixie",
            root,
            MIRROR,
        ]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"debootstrap: {made.stdout.strip().splitlines()[-1]}")
        policy = root / "usr/sbin/policy-rc.d"  # or the packages would start their services on this machine
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        (root / "boot/firmware").mkdir(parents=True)
        (root / "boot/firmware/cmdline.txt").write_text("console=tty1 rootwait\n")
        (root / "etc/docker").mkdir()
        (root / "etc/docker/daemon.json").write_text('{"data-root": "/srv/docker"}')  # the operator's own
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        yield folder
    finally:
        shutil.rmtree(folder)


def test_a_bare_debian_gets_what_it_needs_and_a_second_run_changes_nothing(debian):
    root, ssh = debian / "root", debian / "ssh"
    ssh.write_text(_SSH.format(root=root))
    ssh.chmod(0o755)
    values = {"ansible_connection": "ssh", "ansible_ssh_executable": str(ssh), "ansible_ssh_transfer_method": "piped",
              "ansible_python_interpreter": "/usr/bin/python3"}  # fmt: skip
    inventory = debian / "hosts.yml"
    inventory.write_text(yaml.safe_dump({"raspberry_pi": {"hosts": {"pi-01": values}}}))
    book = debian / "machine.yml"
    tasks = [{"ansible.builtin.include_role": {"name": name}} for name in ("base", "docker_engine")]
    book.write_text(yaml.safe_dump([{"hosts": "all", "gather_subset": ["min"], "tasks": tasks}]))
    first = playbooks.play(book, inventory, debian / "home")
    assert first.code == 0, first.text
    assert (root / "boot/firmware/cmdline.txt").read_text() == "console=tty1 rootwait cgroup_enable=memory\n"
    daemon = yaml.safe_load((root / "etc/docker/daemon.json").read_text())
    assert daemon == {"data-root": "/srv/docker", "live-restore": True}
    version = subprocess.run(["chroot", root, "docker", "compose", "version"], capture_output=True, check=False)
    assert version.returncode == 0
    second = playbooks.play(book, inventory, debian / "home")
    assert (second.code, second.changed) == (0, {}), second.text
