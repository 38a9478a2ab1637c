"""Runs the observer."""

import threading
from pathlib import Path

from emo.config import WatchConfig


def run(
    config: WatchConfig, stop: threading.Event, folder: Path | None, tensorboard: Path | None, mlflow: str | None
) -> int:
    """Until `stop` is set."""
    raise NotImplementedError
