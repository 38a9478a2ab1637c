"""What the tap costs a device: its round's time with the tap on over that with the tap off.

    python -m bench.tap [--json FILE] [--model vgg6 --widths 1 0.25 --codec fp16]

One process with one torch thread trains 512 images of CIFAR's shape a round, and really sends: a Mosquitto (or
amqtt) runs on this machine. Nobody answers with intervals, so every batch is sent: the worst case. On and off
take turns, round by round, each starting from the same weights; a round's time ends with its update.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from device_app.node import DeviceNode
from emo.config import Broker, DeviceConfig, Model, Tap, Training
from emo.data.dataset import Dataset
from emo.journal import Journal
from emo.models import split_network
from emo.mqtt.channel import MqttChannel
from emo.runtime.channel import Listener
from emo.wire.messages import GlobalModel, Update
from testbed import figures
from testbed.processes.broker import LocalBroker


def main() -> None:
    parser = figures.parser(__doc__, model="vgg6", codec="fp16", rounds=9)
    widths = "the first gives `ratio`; a width under 1 gets more rounds"
    parser.add_argument("--widths", type=float, nargs="+", default=[1.0, 0.25], help=widths)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, LocalBroker(Path(folder)) as broker:
        cases = [_case(args.model, width, args.codec, args.rounds, broker.config) for width in args.widths]
    first = cases[0]
    whole = {"ratio": first["ratio"], "bit_identical": all(case["bit_identical"] for case in cases)}
    figures.write(args.json, {**whole, "broker": broker.kind, "cases": cases})


def _case(name: str, width: float, codec: str, rounds: int, broker: Broker) -> dict[str, Any]:
    spec = Model(name=name, width=width, input=(3, 32, 32))
    rounds = round(rounds / min(1.0, width))
    journal = Journal()
    channel = MqttChannel(broker, "bench", [], journal)
    channel.start(Listener())
    channel.wait_connected(10)
    nodes = {on: _node(spec, codec, on) for on in (True, False)}
    start = split_network.weights(split_network.network(spec, 0))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    same = True
    for number in range(1, rounds + 2):
        weights = {}
        for on in (True, False) if number % 2 else (False, True):
            taken, weights[on] = _round(nodes[on], channel, number, start)
            if number > 1:  # the first warms up
                seconds[on].append(taken)
            while not channel.drained():  # what is left over must not fall on the other's time
                time.sleep(0.001)
        same &= all(np.array_equal(weights[True][key], weights[False][key]) for key in start)
    channel.stop()
    medians = {on: statistics.median(times) for on, times in seconds.items()}
    case = {
        "model": f"{name} x {width:g}",
        "codec": codec,
        "ratio": round(medians[True] / medians[False], 4),
        "bit_identical": same,
        "on_s": round(medians[True], 4),
        "off_s": round(medians[False], 4),
        "rounds": rounds,
        "batches_sent": journal.counts["sent.ActivationBatch"],
        "bytes_sent": journal.counts["sent_bytes.ActivationBatch"],
    }
    figures.line(case)
    return case


def _node(spec: Model, codec: str, on: bool) -> DeviceNode:
    rng = np.random.default_rng(0)
    data = Dataset(
        rng.integers(0, 256, (512, *spec.input), np.uint8),
        rng.integers(0, spec.classes, 512),
        tuple(str(label) for label in range(spec.classes)),
        np.full(3, 127.5, np.float32),
        np.full(3, 64.0, np.float32),
    )
    tap = Tap.model_validate({"enabled": on, "codec": codec})
    return DeviceNode(DeviceConfig(id="bench", edge="edge", model=spec, tap=tap), data, Journal())


def _round(
    node: DeviceNode, channel: MqttChannel, number: int, start: dict[str, np.ndarray]
) -> tuple[float, dict[str, np.ndarray]]:
    began = time.perf_counter()
    for message in node.handle(GlobalModel("bench", number, ("bench",), Training(), start), began):
        if isinstance(message, Update):
            return time.perf_counter() - began, dict(message.weights)
        if message is not None:
            channel.publish(message)
    raise AssertionError("a round ends with an update")


if __name__ == "__main__":
    main()
