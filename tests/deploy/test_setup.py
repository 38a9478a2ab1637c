"""scripts/setup, which `make demo` runs first: who waits for some minutes sees what for."""

import os
import shutil
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "setup"


def test_what_pip_does_is_shown_while_it_does_it(tmp_path):
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    pip = '#!/bin/sh\ncase "$*" in *" --quiet"*|*" -q"*) exit 0;; *pip*) echo "Downloading torch (200 MB)";; esac\n'
    for name, text in (("python", pip), ("mosquitto", "#!/bin/sh\n")):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    environ = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}
    environ.pop("PIP_QUIET", None)
    done = subprocess.run([tmp_path / "scripts" / "setup"], env=environ, capture_output=True, text=True, check=True)
    assert "Downloading torch" in done.stdout
    assert (tmp_path / ".venv" / "ready").exists()
