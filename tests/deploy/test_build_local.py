"""What `make images` gives a build and how it runs an image; that it builds and runs them is its own business."""

import subprocess
from pathlib import Path

import pytest

DOCKER = Path(__file__).parents[2] / "docker"
CONFIG = {
    "User": "10001:10001",
    "Env": ["PATH=/opt/app/bin"],
    "WorkingDir": "/var/lib/emo",
    "Volumes": {"/var/lib/emo": {}},
    "Entrypoint": ["emo"],
    "Cmd": ["device", "--config", "x"],
}


@pytest.fixture
def local(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCKER))
    import build_local

    return build_local


@pytest.fixture
def contain(local):
    import contain

    return contain


def configured(monkeypatch, text):
    done = subprocess.CompletedProcess([], 0, stdout=text)
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: done)


def test_a_mirror_of_this_machine_is_the_builds_too(local, monkeypatch, tmp_path):
    configured(
        monkeypatch,
        ":env:.find-links='/wheels'\nglobal.cert='/etc/ca.crt'\nglobal.find-links='/other'\n"
        "global.extra-index-url='file:///mirror/simple\\nhttps://mirror.example/simple'\n",
    )
    mirror, conf, volumes = local._pip(tmp_path)
    assert mirror
    assert volumes == ["/mirror:/mirror:ro", "/wheels:/wheels:ro", "/etc/ca.crt:/run/pip-ca.crt:ro"]
    text = conf.read_text(encoding="utf-8")
    assert "find-links = /wheels\n" in text  # the environment is before the file
    assert "extra-index-url = file:///mirror/simple https://mirror.example/simple\n" in text
    assert "cert = /run/pip-ca.crt\n" in text


def test_without_a_mirror_it_is_pypi_and_pytorchs_index(local, monkeypatch, tmp_path):
    configured(monkeypatch, "global.timeout='60'\n")
    assert local._pip(tmp_path)[::2] == (False, [])
    assert local._pip(tmp_path)[1].read_text(encoding="utf-8") == "[global]\n"


def test_what_is_still_mounted_is_not_deleted(local, monkeypatch, tmp_path, capsys):
    (tmp_path / "precious").touch()
    mounts = f"/dev/sda / ext4 rw 0 0\noverlay {tmp_path}/merged overlay rw 0 0\n"
    monkeypatch.setattr(local.Path, "read_text", lambda *args, **options: mounts)
    local._remove(tmp_path)
    assert (tmp_path / "precious").exists()
    assert "still mounted" in capsys.readouterr().out
    monkeypatch.setattr(local.Path, "read_text", lambda *args, **options: "/dev/sda / ext4 rw 0 0\n")
    local._remove(tmp_path)
    assert not tmp_path.exists()


def test_an_image_runs_as_its_compose_file_would_have_it(contain, tmp_path):
    image = contain.Image("device", Path("/root of it"), CONFIG)
    place = contain.Place({"/etc/emo": (tmp_path, False)}, {"EMO_ID": "d"}, "net")
    *before, script = contain.arguments(image, place, contain.command(image))
    assert before[:4] == ["ip", "netns", "exec", "net"]
    assert {"--mount", "--pid"} <= set(before)
    steps = script.split(" && ")
    assert steps[1] == "mount -o remount,bind,ro '/root of it'"
    assert "mount -o remount,bind,ro '/root of it/etc/emo'" in steps
    assert any(step.startswith("mount -t tmpfs") and step.endswith("/var/lib/emo") for step in steps)
    assert "setpriv --no-new-privs chroot --userspec=10001:10001 --groups= '/root of it' env -i" in steps[-1]
    assert steps[-1].endswith("PATH=/opt/app/bin EMO_ID=d emo device --config x")


def test_a_volume_that_is_given_is_the_one(contain, tmp_path):
    image = contain.Image("device", Path("/root"), CONFIG)
    script = contain.arguments(image, contain.Place({"/var/lib/emo": (tmp_path, True)}), ["true"])[-1]
    assert f"mount --bind {tmp_path} /root/var/lib/emo" in script
    assert "remount,bind,ro /root/var" not in script
    assert "tmpfs /root/var/lib/emo" not in script
    assert contain.command(image, "selftest", "--json") == ["emo", "selftest", "--json"]
