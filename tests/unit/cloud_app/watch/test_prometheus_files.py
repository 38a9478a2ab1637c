"""The alert rules that we ship: read by the real promtool, and each fires when it should."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

RULES = Path(__file__).parents[4] / "docs/prometheus/emo.rules.yml"
CASES = Path(__file__).with_name("emo.rules.test.yml")


def promtool(*arguments):
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    return subprocess.run([program, *map(str, arguments)], check=False, capture_output=True, text=True, timeout=60)


def test_promtool_takes_the_rules():
    done = promtool("check", "rules", "--lint-fatal", RULES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_when_it_should():
    done = promtool("test", "rules", CASES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_in_a_case():
    alerts = re.findall(r"alert: (\w+)", RULES.read_text())
    assert len(alerts) == len(set(alerts)) > 10
    cases = CASES.read_text().replace("(Device|Tier)", "DeviceAbsent EmoTier")
    assert [alert for alert in alerts if alert not in cases] == []
