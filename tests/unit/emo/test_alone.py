"""One process a state_dir: a second node says so at once, and changes nothing there."""

import subprocess
import sys

import pytest
import yaml

from emo import cli, files
from emo.errors import ConfigError

pytestmark = pytest.mark.usefixtures("signals")
DIGITS = {"data": {"name": "digits"}}
TIERS = {"device": DIGITS, "edge": {"devices": ["a"]}, "cloud": DIGITS}


@pytest.mark.parametrize("tier", TIERS)
def test_a_second_node_is_refused_before_it_changes_anything(tier, tmp_path, capsys, caplog):
    state, path = tmp_path / "state", tmp_path / f"{tier}.yaml"
    path.write_text(yaml.safe_dump({"id": "one", "state_dir": str(state), **TIERS[tier]}))
    with files.alone(state):
        assert cli.main([tier, "--config", str(path)]) == 2
        assert f"state_dir {state}: another node runs with it" in capsys.readouterr().err + caplog.text
        assert [each.name for each in state.iterdir()] == [".lock"]


def test_devices_of_one_process_need_a_folder_each(tmp_path):
    with (
        files.alone(tmp_path),
        pytest.raises(ConfigError, match="another node runs with it"),
        files.alone(tmp_path),
    ):
        pass
    with files.alone(tmp_path):
        pass


def test_it_is_free_again_when_its_process_was_killed(tmp_path):
    script = (
        "import sys, pathlib, time; from emo import files\n"
        "with files.alone(pathlib.Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ConfigError), files.alone(tmp_path):
            pass
        other.kill()
    with files.alone(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"file/state: cannot be written: "),
        files.alone(tmp_path / "file/state"),
    ):
        pass
