"""A thousand devices tell how they do: does the observer stay small and quick, and what does telling cost the cloud?

    python -m bench.watch fleet [--json FILE] [--devices 1000] [--seconds 90] [--rounds 2880]
    python -m bench.watch cost  [--json FILE] [--turns 5]

`fleet`. Real: Mosquitto, `emo watch` as a process of its own, and one reader of its page. The cloud, 10 edges and the devices
are one connection that publishes what they would, in real frames at the real pace: 100 devices are asked in a round of 30 s, a report
in 5 s of each that trains and of cloud and edges, one a minute of the others, every node's status in 30 s, an event for
every device that is asked, counted and has trained, the history after each round. For `--seconds`: `rss_mib`, the most
that the observer held; `cpu_share` of a core; `event_p50_ms`, `event_p99_ms`: from an event's publication until the
reader has it. Then a day's `--rounds`, as fast as the observer takes them, each with 12 events and 45 reports, of which it leaves out what no
fleet would tell so fast: `day_mib`, what it held after each tenth of them.

`cost`. `emo cloud` with 10 devices and 2 edges, the demo's run, told to nobody: seconds of processor of the cloud's process,
with `report_s` 5 and null in turns, each median and range; and `telling_s`: what making and sending those messages takes
by itself, in this process.
"""

import http.client
import itertools
import json
import os
import queue
import random
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import yaml

from emo.config import Broker
from emo.journal import Journal
from emo.mqtt import client as mqtt_client
from emo.runtime import machine
from emo.runtime.reporter import Reporter
from emo.wire import frame, topics
from emo.wire.messages import Event, Message, Report, Role, RunHistory, RunState, Status
from testbed import figures
from testbed.chaos.process import Program
from testbed.processes.broker import LocalBroker
from testbed.processes.child import serving_at

_ROUND_S, _ASKED, _EDGES = 30.0, 100, 10
_RUN = "20261129T000000-0"
_WAIT_S = 60.0
Timed = tuple[float, Message]


class Fleet:
    """What its nodes say, by round: (seconds after the round's start, message), in order."""

    def __init__(self, devices: int, rounds: int) -> None:
        self.edges = [f"edge-{number:02d}" for number in range(_EDGES)]
        self.devices = [f"device-{number:04d}" for number in range(devices)]
        self._rounds, self._rows = rounds, list[tuple[Any, ...]]()
        self._numbers = itertools.count(1)
        self._rng = random.Random(0)  # noqa: S311 - to be repeated

    def hello(self) -> Iterator[Message]:
        yield Status("cloud", "cloud", online=True)
        yield from (Status(edge, "edge", online=True) for edge in self.edges)
        for name in self.devices:
            yield Status(name, "device", online=True, samples=500)
            yield self._report(name, "device", "waits for a round")

    def round(self, number: int, asked: int = _ASKED, others: int | None = None) -> list[Timed]:
        """`others`: so many of the rest report, else those whose minute it is."""
        rng, at = self._rng, list[Timed]()
        chosen = rng.sample(self.devices, min(asked, len(self.devices)))
        at += [(0.0, RunState(_RUN, number, self._rounds, "training"))]
        at += [(0.0, self._event("cloud", "cloud", "opened", round=number, devices=sorted(chosen)))]
        for name in chosen:
            starts = rng.uniform(0, 2)
            ends = rng.uniform(15, _ROUND_S - 3)
            for turn in range(int((ends - starts) / 5)):
                at.append((starts + 5 * turn, self._report(name, "device", f"trains round {number}")))
            fields = {"round": number, "loss": rng.random(), "base": "0" * 16, "digest": "1" * 16}
            at.append((ends, self._event(name, "device", "trained", device=name, **fields)))
            at.append((ends + 0.1, self._event("cloud", "cloud", "counted", round=number, device=name, samples=500)))
        rest = len(self.devices) // 2 if others is None else others
        for name in rng.sample(self.devices, min(rest, len(self.devices))):
            at.append((rng.uniform(0, _ROUND_S), self._report(name, "device", "waits for a round")))
        if others is None:
            for name in self.devices:
                at.append((rng.uniform(0, _ROUND_S), Status(name, "device", online=True, samples=500)))
        roles: list[tuple[str, Role]] = [("cloud", "cloud"), *((edge, "edge") for edge in self.edges)]
        for (name, role), turn in itertools.product(roles, range(6 if others is None else 1)):
            at.append((5.0 * turn + rng.random(), self._report(name, role, f"training, round {number}")))
        self._rows = [*self._rows[-1023:], (number, 0.9, 0.3, 27.0, len(chosen), len(chosen), 0, number * 10**8)]
        members = dict.fromkeys(sorted(chosen), 500)
        fields = {"round": number, "of": self._rounds, "accuracy": 0.9, "loss": 0.3, "seconds": 27.0}
        counts = {"updates": len(chosen), "sampled": len(chosen), "left_out": {}, "members": members}
        at.append((_ROUND_S - 1, self._event("cloud", "cloud", "round", **fields, **counts)))
        at.append((_ROUND_S - 1, RunHistory(_RUN, self._rounds, tuple(self._rows))))
        return sorted(at, key=lambda each: each[0])

    def _report(self, name: str, role: Role, doing: str) -> Report:
        rng = self._rng
        counts = (
            "sent_bytes.Update",
            "received_bytes.GlobalModel",
            "sent_bytes.ActivationBatch",
            "tap.attempted",
            "tap.sent",
        )
        shown: dict[str, float] = {each: rng.randrange(10**8) for each in counts}
        shown |= {"machine.cpu_s": rng.randrange(10**4) / 10, "machine.memory_bytes": rng.randrange(10**9)}
        if role == "edge":
            shown |= {
                "cache.entries": rng.randrange(5000),
                "overlay.loss": rng.random(),
                "overlay.step": rng.randrange(10**5),
            }
        elif role == "device":
            shown |= {"train.round": rng.randrange(100), "train.loss": rng.random(), "machine.temperature_c": 51.2}
        edge = self.edges[int(name[-4:]) % _EDGES] if role == "device" else ""
        signs = "".join(rng.choices("0123456789.", k=64)) if role == "device" else ""
        return Report(name, role, _RUN, round(time.time(), 1), edge, doing, "", shown, signs)

    def _event(self, node: str, role: Role, name: str, **fields: Any) -> Event:
        return Event(node, role, next(self._numbers), round(time.time(), 3), name, {"run": _RUN, **fields})


class Publisher:
    """One connection for the whole fleet. An event's field `sent_at` says when it went."""

    def __init__(self, broker: Broker) -> None:
        self._ids = itertools.count(1)
        self._client = mqtt_client.bare(broker, "bench", mqtt_client.V5, clean=True, secret=None)
        self._client.max_inflight_messages_set(200)
        self._client.max_queued_messages_set(0)
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()

    def send(self, message: Message) -> Any:
        route, number = topics.ROUTES[type(message)], next(self._ids).to_bytes(8, "little")
        if isinstance(message, Event):
            message = Event(**{**vars(message), "fields": {**message.fields, "sent_at": time.time()}})
        for index, data in enumerate(frame.split(message, number, 256 << 10, route.limit)):
            sent = self._client.publish(topics.topic("emo", message, index), data, qos=1, retain=route.retain)
        return sent

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Reader:
    """An open page: follows the events, and fetches the curves when they have changed."""

    def __init__(self, host: str) -> None:
        self.waits = list[float]()  # seconds
        self._host = host
        self._connection = http.client.HTTPConnection(host, timeout=_WAIT_S)
        self._changed: queue.SimpleQueue[str] = queue.SimpleQueue()
        for run in (self._follow, self._fetch):
            threading.Thread(target=run, daemon=True).start()

    def get(self, path: str) -> bytes:
        asked = http.client.HTTPConnection(self._host, timeout=_WAIT_S)
        asked.request("GET", path)
        answer = asked.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise OSError(f"{path}: {answer.status} {data[:200]!r}")
        return data

    def _fetch(self) -> None:
        for path in ("/", "/api/state", "/api/log", "/api/history"):
            self.get(path)
        while self._changed.get():
            self.get("/api/history")

    def _follow(self) -> None:
        self._connection.request("GET", "/api/events")
        stream, kind = self._connection.getresponse(), ""
        while line := stream.readline():
            now, text = time.time(), line.decode().rstrip()
            name, _, value = text.partition(": ")
            if name == "event":
                kind = value
            elif name == "data" and kind == "event":
                told = json.loads(value)
                if "sent_at" in told["fields"]:
                    self.waits.append(now - told["fields"]["sent_at"])
            elif name == "data" and kind == "history":
                self._changed.put(value)


def fleet(devices: int, seconds: float, rounds: int) -> dict[str, Any]:
    with TemporaryDirectory(prefix="emo-watch-") as name, LocalBroker(Path(name), "mosquitto") as broker:
        folder = Path(name)
        config = folder / "watch.yaml"
        wan = {"host": broker.config.host, "port": broker.config.port}
        config.write_text(yaml.safe_dump({"wan": wan, "state_dir": str(folder / "watch"), "port": 0}))
        watch = Program("watch", folder, [sys.executable, "-m", "emo.cli", "watch", "--config", str(config)])
        publisher, told = Publisher(broker.config), Fleet(devices, rounds)
        watch.start()
        try:
            url = _until(lambda: serving_at(watch.log), watch)
            for message in told.hello():
                publisher.send(message)
            reader = Reader(url.removeprefix("http://").rstrip("/"))
            found = {"devices": devices} | _live(told, publisher, reader, psutil.Process(watch.pid), seconds)
            figures.line(found)
            return found | _day(told, publisher, reader, watch, rounds)
        finally:
            watch.stop(20)
            publisher.stop()


def _live(told: Fleet, publisher: Publisher, reader: Reader, watch: psutil.Process, seconds: float) -> dict[str, Any]:
    """At the real pace, after one round to settle."""
    most = messages = 0
    for number in range(1, 2 + round(seconds / _ROUND_S)):
        if number == 2:
            cpu, began = sum(watch.cpu_times()[:2]), time.monotonic()
            reader.waits.clear()
            most = messages = 0
        start = time.monotonic()
        for at, message in told.round(number):
            time.sleep(max(0.0, start + at - time.monotonic()))
            publisher.send(message)
            messages += 1
            most = max(most, watch.memory_info().rss) if messages % 50 == 0 else most
        time.sleep(max(0.0, start + _ROUND_S - time.monotonic()))
    took = time.monotonic() - began
    waits = sorted(reader.waits)
    return {
        "messages_s": round(messages / took, 1),
        "rss_mib": round(most / 2**20, 1),
        "cpu_share": round((sum(watch.cpu_times()[:2]) - cpu) / took, 4),
        "events": len(waits),
        "event_p50_ms": round(1e3 * waits[len(waits) // 2], 1),
        "event_p99_ms": round(1e3 * waits[int(0.99 * len(waits))], 1),
        "event_most_ms": round(1e3 * waits[-1], 1),
    }


def _day(told: Fleet, publisher: Publisher, reader: Reader, watch: Program, rounds: int) -> dict[str, Any]:
    held, messages, began = list[float](), 0, time.monotonic()
    process = psutil.Process(watch.pid)
    first = 1 + json.loads(reader.get("/api/state"))["round"]
    for number in range(first, first + rounds):
        for _, message in told.round(number, asked=5, others=10):
            sent = publisher.send(message)
            messages += 1
        sent.wait_for_publish(_WAIT_S)
        if number % 20 == 0:  # the broker would drop what waits for it
            _until(lambda number=number: json.loads(reader.get("/api/state"))["round"] >= number, watch)
        if (number - first + 1) % max(1, rounds // 10) == 0:
            held.append(round(process.memory_info().rss / 2**20, 1))
    took = time.monotonic() - began
    return {"day_rounds": rounds, "day_messages": messages, "day_s": round(took, 1), "day_mib": held}


def _until(reached: Any, watch: Program) -> Any:
    """What it returns, once that is something. Raises TimeoutError with the observer's last words."""
    until = time.monotonic() + _WAIT_S
    while not (found := reached()):
        if time.monotonic() > until or not watch.alive():
            raise TimeoutError(watch.log.read_text(errors="replace")[-1000:])
        time.sleep(0.02)
    return found


def cost(turns: int) -> dict[str, Any]:
    """Of the cloud's process, with and without telling."""
    found = figures.in_turns({"5": lambda: _cloud_cpu_s(5.0), "null": lambda: _cloud_cpu_s(None)}, turns)
    shown: dict[str, Any] = {
        f"cloud_cpu_s report_s {name}": [round(statistics.median(each), 2), round(min(each), 2), round(max(each), 2)]
        for name, each in found.items()
    }
    telling = _telling_s()
    share = telling / statistics.median(found["null"])
    return shown | {"telling_s": round(telling, 3), "telling_share": round(share, 4)}


def _cloud_cpu_s(report_s: float | None) -> float:
    names = [f"device-{number:02d}" for number in range(10)]
    groups = {"edge-1": names[:4], "edge-2": names[4:]}
    with TemporaryDirectory(prefix="emo-watch-") as name, LocalBroker(Path(name), "mosquitto") as broker:
        folder, link = Path(name), {"host": broker.config.host, "port": broker.config.port}

        def start(tier: str, *configs: Mapping[str, Any]) -> subprocess.Popen[bytes]:
            paths = []
            for config in configs:
                paths.append(folder / f"{config['id']}.yaml")
                state = {"state_dir": str(folder / str(config["id"])), "report_s": report_s, "wan": link}
                paths[-1].write_text(yaml.safe_dump({**state, **config}))
            command = [sys.executable, "-m", "emo.cli", tier, "--config", *map(str, paths)]
            environ = {**os.environ, "OMP_NUM_THREADS": "1"}
            return subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        rounds = {"rounds": 12, "min_devices": 10}
        overlays = {"overlays": {"edges": list(groups)}, "export": {"models": str(folder / "models")}}
        cloud = start("cloud", {"id": "cloud", "rounds": rounds, "training": {"lr": 0.05}, **overlays})
        others = []
        for edge, members in groups.items():
            cache = {"dir": str(folder / edge / "cache")}
            others.append(start("edge", {"id": edge, "lan": link, "devices": members, "cache": cache}))
            share = [{"devices": len(names), "index": names.index(each)} for each in members]
            configs = [
                {"id": each, "lan": link, "edge": edge, "partition": part}
                for each, part in zip(members, share, strict=True)
            ]
            others.append(start("device", *configs))
        try:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            if cloud.wait(300):
                raise RuntimeError("the cloud failed")
            after = resource.getrusage(resource.RUSAGE_CHILDREN)  # no other child of ours has ended meanwhile
            return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        finally:
            for process in (cloud, *others):
                process.terminate()
            for process in (cloud, *others):
                process.wait()


def _telling_s() -> float:
    """Of such a run: 30 s with 20 looks a second, an event for each round and for each update, the history 13 times."""
    with TemporaryDirectory() as folder, LocalBroker(Path(folder), "mosquitto") as broker:
        journal, publisher = Journal(Path(folder) / "state"), Publisher(broker.config)
        journal.counts.update({f"sent_bytes.Kind{number}": number for number in range(20)})
        journal.watch(lambda: {f"fl.gauge{number}": number for number in range(10)})
        journal.watch(machine.gauges)
        about = {"run": _RUN, "doing": "collecting, round 7 of 12"}
        reporter = Reporter("cloud", "cloud", journal, lambda: about, 5.0)
        rows = [(number, 0.91, 0.3, 1.5, 10, 10, 0, 10**7) for number in range(1, 13)]
        began = time.process_time()
        for tick in range(600):
            if tick % 4 == 0:
                fields = {"run": _RUN, "round": tick, "device": "device-03", "samples": 140}
                reporter._happened({"time": time.time(), "event": "counted", **fields})  # noqa: SLF001 - without its file
            journal.counts["sent_bytes.Kind0"] += 1
            for message in reporter.due(tick / 20):
                publisher.send(message)
            if tick % 48 == 0:
                publisher.send(RunHistory(_RUN, 12, tuple(rows[: tick // 48 + 1])))
        took = time.process_time() - began
        publisher.stop()
        return took


def main() -> None:
    parser = figures.parser(__doc__, devices=1000, rounds=2880, turns=5)
    parser.add_argument("what", choices=["fleet", "cost"], help="see above")
    parser.add_argument("--seconds", type=float, default=90.0, help="at the real pace, after a round of 30 s")
    args = parser.parse_args()
    found = fleet(args.devices, args.seconds, args.rounds) if args.what == "fleet" else cost(args.turns)
    figures.show(found)
    figures.write(args.json, found)


if __name__ == "__main__":
    main()
