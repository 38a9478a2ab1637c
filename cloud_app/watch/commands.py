"""`emo watch`."""

import argparse
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from emo.config import WatchConfig
from emo.config_file import load
from emo.errors import ConfigError
from emo.extras import needs
from emo.parser import GRACEFUL, Commands

if TYPE_CHECKING:
    from cloud_app.watch.sinks.feeder import Log


def register(commands: Commands) -> None:
    text = "a page, metrics and figures of a fleet, from a node that only reads"
    option = commands.add("watch", _watch, text, "watch", GRACEFUL).add_argument
    option("--config", type=Path, metavar="FILE", help="the observer's configuration (default: none; or --run)")
    text = (
        "show a run that is over: the state_dir of a cloud or of an observer, or a simulation's folder (default: none)"
    )
    option("--run", dest="folder", type=Path, metavar="DIR", help=text)
    option("--host", help="the address to listen on; 0.0.0.0: every one (default: as configured, else 127.0.0.1)")
    option("--port", type=int, help="0: any free one (default: as configured, else 8080)")
    option("--tensorboard", type=Path, metavar="DIR", help="write scalars by round there, too (default: no)")
    option("--mlflow", metavar="URI", help="log the run to this MLflow server, too (default: no)")


def _watch(args: argparse.Namespace, stop: threading.Event) -> int:
    if (args.config is None) == (args.folder is None):
        raise ConfigError("one of --config FILE, to watch a fleet, and --run DIR, to look at a run that is over")
    settings = WatchConfig() if args.config is None else load(WatchConfig, args.config)
    with needs("watch"):
        from cloud_app.watch.run import run
    given = {key: value for key in ("host", "port") if (value := getattr(args, key)) is not None}
    return run(settings.model_copy(update=given), stop, args.folder, _logs(args.tensorboard, args.mlflow))


def _logs(tensorboard: Path | None, mlflow: str | None) -> "list[Log]":
    logs: list[Log] = []
    if tensorboard is not None:
        with needs("tensorboard"):
            from cloud_app.watch.sinks.tensorboard import TensorBoard
        logs.append(TensorBoard(tensorboard))
    if mlflow is not None:
        with needs("mlflow"):
            from cloud_app.watch.sinks.mlflow import MLflow
        logs.append(MLflow(mlflow))
    return logs
