"""Fixtures of several folders: a real Mosquitto on a free loopback port; signal handlers put back."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import Mosquitto
from hypothesis import settings

from emo.config import Broker

# The same examples in each run, and no deadline: the machine may be busy.
settings.register_profile("emo", derandomize=True, deadline=None, database=None, max_examples=100)
settings.load_profile("emo")

_FIRST = ("tests/system/test_chaos.py", "tests/integration/", "tests/system/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order in which two cores take the files: the longest early, whole fleets not side by side."""
    items.sort(key=lambda item: next((n for n, each in enumerate(_FIRST) if item.nodeid.startswith(each)), 9))


@pytest.fixture
def signals() -> Iterator[None]:
    """For tests that call main(), which sets handlers."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def mosquitto_program() -> str:
    found = shutil.which("mosquitto", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")
    if found is None:
        reason = "no mosquitto on PATH or in /usr/sbin (apt install mosquitto)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="session")
def broker(mosquitto_program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One broker for the whole session: give `root` and client ids of your own to tell tests apart."""
    server = Mosquitto(mosquitto_program, tmp_path_factory.mktemp("mosquitto"))
    try:
        server.start()
        yield server.broker
    finally:
        server.stop()


@pytest.fixture
def mosquitto(mosquitto_program: str, tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker for one test, not started yet."""
    server = Mosquitto(mosquitto_program, tmp_path)
    yield server
    server.stop()
