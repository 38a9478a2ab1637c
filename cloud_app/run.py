"""Runs the cloud: the rounds, then their result is kept in state_dir and published as an ONNX file."""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cloud_app.ensemble import dry_run, run_archive
from cloud_app.ensemble import model as ensemble
from cloud_app.ensemble.member_choice import Choice
from cloud_app.ensemble.publish import added, publish
from cloud_app.ready import ready
from cloud_app.result import for_observers
from cloud_app.rounds.checkpoint import Checkpoints
from cloud_app.rounds.node import CloudNode, Host
from cloud_app.rounds.round import history
from cloud_app.rounds.state import Opened, State, begin, sfl_bytes
from cloud_app.serving.repository import Repository
from emo import __version__, files
from emo.config import CloudConfig
from emo.data.dataset import Dataset
from emo.errors import EmoError, ExportError
from emo.journal import Journal
from emo.local_sgd import evaluate
from emo.models import split_network
from emo.mqtt.channel import MqttChannel
from emo.runtime import agreement, machine
from emo.runtime.heartbeat import PAUSE, HeartbeatWriter, beating
from emo.runtime.runner import Runner
from emo.wire.messages import Message, Weights
from emo.wire.topics import filters

log = logging.getLogger("emo")


def run(config: CloudConfig, stop: threading.Event, new: bool = False) -> dict[str, Any] | None:
    """Run all rounds, or those left of the run in state_dir, which `new` gives up. Returns the result, which is also in
    state_dir/result.json, or None when `stop` came first.

    Raises EmoError on what does not fit, before anything connects; QuorumError when devices stay away.
    """
    with files.alone(config.state_dir):
        return _run(config, stop, new)


def _run(config: CloudConfig, stop: threading.Event, new: bool) -> dict[str, Any] | None:
    torch.set_num_threads(config.threads)
    test, net, layout = ready(config)
    Repository(config.export.models).try_writing(config.export.name)
    journal = Journal(config.state_dir)
    journal.event("start", tier="cloud", id=config.id, pid=os.getpid())

    def accuracy(weights: Weights) -> tuple[float, float]:
        split_network.load(net, weights)
        return evaluate(net, test)

    start, weights = time.monotonic(), split_network.weights(net)
    keep = Checkpoints(config.state_dir / "run", journal)
    if new:
        keep.clear()
    state = keep.load(config, weights, layout)
    if state is None:
        dry_run.run(config, test)
    parts = {"network": weights}
    if config.overlays.edges:
        parts["overlay"] = split_network.weights(split_network.overlay(config.model, seed=0))
    facts = agreement.facts(config.model, split_network.split_shape(config.model), test, **parts)
    resumed = state is not None
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{config.rounds.seed}"
    state = state or begin(config, name, weights)
    host = Host(accuracy, keep, (config.state_dir / PAUSE).exists, config.state_dir / "updates")
    node = CloudNode(config, state, journal, host, layout, facts)
    if resumed:
        opened = state.opened or Opened(sampled=())
        asked, counted = opened.sampled, sorted(opened.heard)
        where = {"run": state.run, "round": state.round, "phase": state.phase, "settings": _told(state.settings)}
        journal.event("resumed", **where, sampled=asked, counted=counted)
        log.info("run %s: goes on, in round %d of %d", state.run, state.round, config.rounds.rounds)
    else:
        journal.event("begun", run=state.run, settings=_told(state.settings))
        log.info("run %s: waiting for %d devices", state.run, config.rounds.min_devices)
    root, will = config.wan.root, node.hello(online=False)
    wan = filters(root, "cloud", "wan")
    channel = MqttChannel(config.wan, f"{root}-{config.id}-wan", wan, journal, will, node.limits())
    heart = HeartbeatWriter(config.state_dir, "cloud", config.id, lambda: {"wan": channel.connected}, node.about)
    journal.watch(node.gauges)
    journal.watch(machine.gauges)
    result: dict[str, Any] = {}

    def export() -> Iterator[Message | None]:
        node.close()
        heart.doing = "exporting"
        log.info(
            "run %s: making the ensemble of the FL model and %d overlays, and its ONNX file",
            state.run,
            len(state.overlays),
        )
        journal.event("exporting", run=state.run)
        yield None
        result.update(finish(config, state, test, resumed))
        result["sfl_bytes"] = sfl_bytes(config, state)
        result["seconds"] = round(time.monotonic() - start, 1)
        text = json.dumps(result, indent=1) + "\n"
        try:
            files.write(config.state_dir / "result.json", text.encode())
        except OSError as error:
            why = f"{config.state_dir}: the result cannot be written: {error.strerror}"
            raise ExportError(f"{why}; make room, and start the cloud again: it adds no second version") from error
        journal.event("exported", run=state.run, version=result["version"], accuracy=result["accuracy"]["served"])
        yield from history(config, state, for_observers(result))
        keep.clear()

    with beating([heart]):
        runner = Runner(node, {"wan": channel}, journal, turned=heart.turned, report_s=config.report_s)
        runner.run(stop, export)
        node.close()
    return result or None


def finish(config: CloudConfig, state: State, test: Dataset, resumed: bool) -> dict[str, Any]:
    """Keep the run in state_dir for `emo export`, then publish it. Returns what `publish` does, the edges' counts and the
    path of a sample image. `resumed`: an earlier process may have published it already. Raises as `publish`, with how to go
    on.
    """
    run, edges = state.run, dict(sorted(state.overlays.items()))
    choice = config.overlays
    record = run_archive.Record(
        emo=__version__,
        run=run,
        rounds=config.rounds.rounds,
        model=config.model,
        data=config.data,
        combine=choice.combine,
        edges=edges,
    )
    parts = ensemble.parts(state.weights, state.overlay_weights)
    # First: if it cannot be published now, `emo export` can do it later.
    unkept = _keep(config.state_dir, record, parts)
    export = config.export
    rest = (), export.opset, export.at_least, export.answers
    wanted = Choice(choice.combine, choice.head, choice.fit, export.int8, *rest)
    to = export.models, export.name
    try:
        published = publish(record, parts, wanted, *to, added(run, *to) if resumed else None)
    except EmoError as error:
        if unkept:
            raise
        again = f"emo export --run {config.state_dir} {wanted.command(*to)}"
        raise ExportError(
            f"{error}\nThe run is kept. Once that is mended: {again} (or start the cloud again)"
        ) from error
    version = f"{export.name} version {published['version']}, {published['bytes']} bytes"
    log.info("exported %s, accuracy %.2f %%", version, 100 * published["accuracy"]["served"])
    if unkept and (unkept := _keep(config.state_dir, record, parts)):  # there may be room by now
        log.warning("%s; `emo export` will not find this run", unkept)
    return {
        "run": run,
        "rounds": config.rounds.rounds,
        **published,
        "edges": {edge: counts.model_dump() for edge, counts in edges.items()},
        "sample": _sample(config.state_dir, test),
    }


def _keep(folder: Path, record: run_archive.Record, parts: Mapping[str, Weights]) -> ExportError | None:
    """Returns why it could not be kept, if so."""
    try:
        run_archive.write(folder, record, parts)
    except ExportError as error:
        return error
    return None


def _told(settings: Mapping[str, Any]) -> dict[str, bool | float | str | None]:
    """The settings of a run for observers: single values."""
    single = bool | int | float | str | None
    return {key: value if isinstance(value, single) else json.dumps(value) for key, value in settings.items()}


def _sample(folder: Path, test: Dataset) -> dict[str, str] | None:
    """Save a test image as PNG, for a request by hand. None if the data are no images."""
    pixels = test.images[-1]
    if test.images.dtype != "uint8" or pixels.ndim != 3 or pixels.shape[0] not in {1, 3}:
        return None
    path = folder / "sample.png"
    try:
        Image.fromarray(pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)).save(path)
    except OSError as error:
        log.warning("%s: cannot be written: %s", path, error.strerror)
        return None
    return {"image": str(path.resolve()), "truth": test.classes[int(test.labels[-1])]}
