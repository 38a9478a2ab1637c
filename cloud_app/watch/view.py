"""All that an observer knows of a fleet, out of the messages that it hears. No I/O, no clock, one thread at a time.

Same calls, same state: so a record of the messages (record.py) can be looked at again. Everything is bounded, whatever
strangers send.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from cloud_app.result import number
from cloud_app.watch.event_log import Entry, EventLog
from cloud_app.watch.node_state import GONE_S, Light, Node
from cloud_app.watch.run_state import RunProgress, valid_id, whole
from cloud_app.watch.sentences import PROBLEMS, percent, sentence, some, why_left_out
from cloud_app.watch.series import Series
from cloud_app.watch.traffic import BY_KIND, MOST, SORTS, Totals, sums, totals
from emo.security.members import Members
from emo.throttle import Budget
from emo.wire.messages import Event, Message, Report, RunHistory, RunState, Status

_EDGES = 64  # that have curves
# How often: at once, then in a second. Events of one device or edge, beyond which they are refused; in the log, devices that come
# and go, since all do with their broker.
_OFTEN, _MOVES = (100, 2.0), (40, 0.5)
_LIGHTS: tuple[Light, ...] = ("alive", "training", "late", "out", "refused", "gone")


class View:
    """`nodes`: how many at most; `members`: the only ones, if given, and there from the start."""

    def __init__(self, nodes: int, members: Members | None = None) -> None:
        self._most, self._members = nodes, members
        self.nodes: dict[str, Node] = {}
        self.progress = RunProgress()
        self.events = EventLog()
        self.refused = 0  # messages of nodes that are not shown
        self.connected, self.changed = False, 0.0
        self.endpoint: dict[str, Any] | None = None
        self._cloud = members.cloud if members else ""
        self._spare = RunProgress()  # of another run than the one that is shown
        self._bytes = Series((*SORTS, "sent_share", *BY_KIND))
        self._edges: dict[str, Series] = {}
        self._served = Series(("requests", "latency_ms"))
        self._version = 0
        self._often, self._moves = Budget(*_OFTEN), Budget(*_MOVES)
        if members is not None:
            for each, edge in _places(members):
                self.nodes[each] = Node(each, members.role(each), edge)

    # -- what is heard

    def link(self, up: bool, now: float) -> None:
        """The broker can be heard from now on, or no more."""
        if up != self.connected:
            self.connected, self.changed = up, now

    def served(self, endpoint: Mapping[str, Any], now: float) -> None:
        """How the endpoint does: url, name, alive, version, and where known requests (so far) and latency_ms."""
        self.endpoint = dict(endpoint)
        if endpoint.get("alive"):
            self._served.add(now, number(endpoint.get("requests")), number(endpoint.get("latency_ms")))
            self._version += 1

    def take(self, message: Message, now: float) -> list[Entry]:
        """`now`: Unix time. Returns what there is to show of it, if anything."""
        if isinstance(message, RunState):
            self._run_state(message)
        elif isinstance(message, RunHistory):
            self._history(message)
        elif isinstance(message, Status | Report | Event):
            node = self._node(message)
            if node is None:
                self.refused += message.role != "observer"
            elif isinstance(message, Status):
                return self._status(node, message, now)
            elif isinstance(message, Report):
                self._report(node, message, now)
            else:
                return self._event(node, message, now)
        return []

    def _node(self, message: Status | Report | Event) -> Node | None:
        """None: it is not shown."""
        role, name = message.role, message.node
        if role == "observer":
            return None
        node = self.nodes.get(name)
        if self._members is not None:
            return node if node is not None and node.tier == role else None
        if role == "cloud" and name != self._cloud:
            known = self.nodes.get(self._cloud)
            if known is not None and known.online:
                return None  # a fleet has one cloud
        if node is None:
            if len(self.nodes) >= self._most and not self._make_room():
                return None
            node = self.nodes[name] = Node(name, role)
        elif node.tier != role:
            if not isinstance(message, Status) or not message.online or node.online:
                return None
            node = self.nodes[name] = Node(name, role)
        if role == "cloud":
            self._cloud = name
        return node

    def _make_room(self) -> bool:
        """One that has never announced itself goes, or one that has gone."""
        for wanted in (None, False):
            for name, node in self.nodes.items():
                if node.online is wanted and name != self._cloud:
                    del self.nodes[name]
                    self.refused += 1
                    return True
        return False

    def _status(self, node: Node, status: Status, now: float) -> list[Entry]:
        was = node.online
        if not node.status(status, now):
            return []
        if was is None and self.progress.phase not in {None, "waiting"}:
            return []  # it was here before us
        if node.tier == "device" and not self._moves.takes((), now):
            return []
        event = "online" if status.online else "offline"
        lost = not status.online and self.progress.phase in {"training", "finishing", "exporting"}
        return [self._log(node, now, event, {}, "problem" if lost else "info")]

    def _report(self, node: Node, report: Report, now: float) -> None:
        node.report(report, now)
        node.sums = sums(node)
        if node.tier == "cloud":
            if report.run and report.run != self.progress.run:
                self._begin(report.run)
            self._cloud_figures(node, now)
        elif node.tier == "device" and (loss := node.figures.get("train.loss")) is not None:
            node.loss = loss
        elif node.tier == "edge":
            self._edge_curves(node, now)
        self._curves(now)

    def _cloud_figures(self, node: Node, now: float) -> None:
        progress, this = self.progress, self.progress.open
        if whole(rounds := int(node.figures.get("fl.rounds") or 0)):
            progress.rounds = rounds
        fresh = [key for key in ("fl.asked", "fl.answered", "fl.round") if node.told.get(key) == now]
        if (
            this is not None
            and len(fresh) == 3
            and node.figures["fl.round"] == this.number
            and node.figures["fl.asked"]
        ):
            this.asked_count = max(this.asked_count, min(int(node.figures["fl.asked"]), 1_000_000))
            this.answered_count = max(this.answered_count, min(int(node.figures["fl.answered"]), 1_000_000))

    # -- events

    def _event(self, node: Node, event: Event, now: float) -> list[Entry]:
        if node.tier != "cloud" and not self._often.takes((node.id,), now):
            self.refused += 1
            return []
        if not node.first(event.number, event.time):
            return []
        if node.online is not False:
            node.last_seen = now
        fields, last = event.fields, ""
        if node.tier == "cloud":
            self._of_cloud(node, event.name, fields, min(now, event.time) if abs(now - event.time) < 3600 else now, now)
            if event.name == "round" and fields.get("sampled") != 1:
                last = self.progress.waited.get(whole(fields.get("round")) or 0, ("", 0.0))[0]
        elif node.tier == "device":
            self._of_device(node, event.name, fields)
        elif event.name in {"distrusted", "trusted"}:
            device = self.nodes.get(valid_id(fields.get("device")))
            if device is not None and device.tier == "device":
                why = f"{node.id} trains without it: its labels are less likely than a guess"
                device.distrusted = why if event.name == "distrusted" else ""
        return [self._log(node, now if abs(event.time) > 1e12 else event.time, event.name, fields, last=last)]

    def _of_device(self, node: Node, event: str, fields: Mapping[str, Any]) -> None:
        this = whole(fields.get("round"))
        if event == "trained" and this is not None:
            node.trained, node.trains = this, False
            if (loss := number(fields.get("loss"))) is not None:
                node.loss = loss
        elif event == "refused":
            node.refused = sentence(node.id, node.tier, event, fields)[:300]

    def _of_cloud(self, cloud: Node, event: str, fields: Mapping[str, Any], at: float, now: float) -> None:
        """`at`: when it happened."""
        progress, run = self.progress, valid_id(fields.get("run"))
        if run and run != progress.run and event in {"begun", "resumed", "opened", "round", "counted", "exporting"}:
            self._begin(run)
            progress = self.progress
        if event in {"begun", "resumed"} and isinstance(told := fields.get("settings"), dict):
            progress.settings = told
        this, device = whole(fields.get("round")), self.nodes.get(valid_id(fields.get("device")))
        if event == "opened" and this is not None:
            self._asked(this, _names(fields.get("devices")), at)
        elif event == "resumed" and this is not None:
            if fields.get("phase") == "collecting":
                self._asked(this, _names(fields.get("sampled")), at)
                for each in _names(fields.get("counted")):
                    self._counted(self.nodes.get(each), each, this, at)
                if progress.open is not None:
                    progress.open.half = None
            progress.round = this
        elif event == "counted" and this is not None:
            self._counted(device, valid_id(fields.get("device")), this, at)
        elif event == "round":
            progress.closed(fields, at)
            if this in progress.closed_at:
                progress.sums[this] = self._so_far()
            left = fields.get("left_out")
            for each, why in left.items() if isinstance(left, dict) else ():
                self._left_out(self.nodes.get(each), why, fields.get("round"), now)
        elif event in {"unfit", "cannot_train"}:
            told = self.nodes.get(valid_id(fields.get("node")))
            if told is not None and told is not cloud and isinstance(why := fields.get("why"), str):
                told.left_out(why, now)
        elif event == "exporting" and not progress.result:
            progress.phase, progress.open = "exporting", None
        elif event == "exported":
            progress.phase, progress.open = "done", None
            if (accuracy := number(fields.get("accuracy"))) is not None:
                progress.result.setdefault("served", accuracy)

    def _asked(self, this: int, devices: list[str], at: float) -> None:
        self.progress.opened(this, devices, at)
        for each in devices:
            node = self.nodes.get(each)
            if node is not None:
                node.asked = this
                node.takes_part()

    def _counted(self, node: Node | None, device: str, this: int, at: float) -> None:
        if node is not None:
            node.counted = this
            node.takes_part()
        if device and self.progress.open is not None and self.progress.open.number == this:
            self.progress.open.count(device, at)

    def _left_out(self, node: Node | None, why: Any, this: Any, now: float) -> None:
        if node is None or not isinstance(why, str):
            return
        text = f"left out of round {this}: it {why_left_out(why)}"
        if why == "refused":
            node.refused = node.refused or f"left out of round {this}: its update was refused"
        elif why == "cannot-train":
            node.left_out(text, now)
        elif why == "late":
            node.left = text[:300]

    def _log(
        self, node: Node, time: float, event: str, fields: Mapping[str, Any], level: str = "", last: str = ""
    ) -> Entry:
        problem = level == "problem" or (not level and event in PROBLEMS)
        text = sentence(node.id, node.tier, event, fields, last)
        entry = self.events.add(time, node.id, node.tier, event, "problem" if problem else "info", text, fields)
        node.events.append(entry.number)
        about = self.nodes.get(valid_id(fields.get("device")) or valid_id(fields.get("node")))
        if about is not None and about is not node and problem:
            about.events.append(entry.number)
        return entry

    # -- the run

    def _run_state(self, told: RunState) -> None:
        if told.run != self.progress.run:
            if told.phase == "done" and self.progress.run:
                return  # what the broker has kept of the run before
            self._begin(told.run)
        self.progress.state(told)

    def _history(self, told: RunHistory) -> None:
        if not self.progress.run:
            self._begin(told.run)
        if told.run == self.progress.run:
            self.progress.history(told)
        else:
            if told.run != self._spare.run:
                self._spare = RunProgress(told.run)
            self._spare.history(told)

    def _begin(self, run: str) -> None:
        known = bool(self.progress.run)
        version = self.progress.version
        self.progress = self._spare if self._spare.run == run else RunProgress(run)
        self.progress.version, self._spare = version + 1, RunProgress()
        for node in self.nodes.values() if known else ():
            node.begin()
            node.sums = sums(node) if node.sums else ()
        if known:
            self._bytes, self._edges = Series(self._bytes.names), {}

    # -- curves

    def _totals(self) -> Totals:
        return totals(self.nodes.values())

    def _so_far(self) -> dict[str, float | None]:
        """Bytes by sort, and the share of batches sent, as told so far."""
        told = self._totals()
        return {**told.sorts, "sent_share": told.share}

    def _curves(self, now: float) -> None:
        if not self._bytes.due(now):
            return
        told = self._totals()
        self._bytes.add(now, *told.sorts.values(), told.share, *told.kinds.values())
        self._version += 1

    def _edge_curves(self, edge: Node, now: float) -> None:
        series = self._edges.get(edge.id)
        if series is None:
            if len(self._edges) >= _EDGES:
                return
            series = self._edges[edge.id] = Series(("step", "loss", "entries", "bytes", "age", "interval"))
        figure = edge.figures.get
        values = [figure(key) for key in ("overlay.step", "overlay.loss", "cache.entries", "cache.bytes")]
        series.add(now, *values, _age(edge.figures), self._interval(edge.id) if series.due(now) else None)
        self._version += 1

    def _interval(self, edge: str) -> float | None:
        """The mean of the intervals of its devices' batches."""
        signs = [
            int(sign, 36)
            for node in self.nodes.values()
            if node.edge == edge and node.tier == "device"
            for sign in node.intervals
            if sign != "."
        ]
        return round(sum(signs) / len(signs), 2) if signs else None

    # -- what is shown

    @property
    def version(self) -> int:
        """Grows with every change of the curves."""
        return self._version + self.progress.version

    def lights(self, now: float) -> dict[str, tuple[Light, str]]:
        this = self.progress.open
        open_round, late = (this.number, this.late(now)) if this is not None else (0, False)
        heard, since = (now, self.changed) if self.connected or not self.changed else (self.changed, 0.0)
        sure = heard - since >= GONE_S
        return {name: each.light(each.alive(heard, sure), open_round, late) for name, each in self.nodes.items()}

    def state(self, now: float) -> dict[str, Any]:
        """As GET /api/state has it, without `watcher`'s own words."""
        lights = self.lights(now)
        state = self.summary(now, lights)
        return {**state, "nodes": [node.shown(*lights[node.id]) for node in self._in_order()]}

    def summary(self, now: float, lights: Mapping[str, tuple[Light, str]]) -> dict[str, Any]:
        """The state without the nodes. `counts`: of devices; `alive` are all that have not gone, the others by light."""
        progress = self.progress
        traffic = self._totals()
        counts = dict.fromkeys(("devices", *_LIGHTS), 0)
        for node in self.nodes.values():
            if node.tier == "device":
                counts["devices"] += 1
                counts[lights[node.id][0]] += 1
        counts["alive"] = counts["devices"] - counts["gone"]
        cloud = self.nodes.get(self._cloud)
        figure = cloud.figures.get("fl.sfl_bytes") if cloud is not None and cloud.run == progress.run else None
        told = [value for value in (figure, progress.sfl_bytes) if value is not None]
        return {
            "time": round(now, 3),
            "run": progress.run or None,
            "phase": progress.phase,
            "doing": self._doing(lights),
            "round": progress.round,
            "rounds": progress.rounds,
            "open": progress.open.shown() if progress.open is not None else None,
            "seconds_left": progress.seconds_left(now),
            "accuracy": progress.accuracy,
            "result": progress.result,
            "bytes": {
                **{sort: int(count) for sort, count in traffic.sorts.items()},
                "sfl": int(min(max(told), MOST)) if told else None,
            },
            "sent": {"offered": int(traffic.offered), "sent": int(traffic.sent)},
            "counts": counts,
            "endpoint": self.endpoint,
        }

    def _doing(self, lights: Mapping[str, tuple[Light, str]]) -> str:
        progress, cloud = self.progress, self.nodes.get(self._cloud)
        if progress.phase is None:
            return "no run yet: waiting for the cloud" if cloud is None else "waiting for a run"
        if progress.phase == "done":
            served = progress.result.get("served")
            return "the run is over" + (f": the model reaches {percent(served)}" if served is not None else "")
        if cloud is not None and lights[cloud.id][0] == "gone" and cloud.online is not None:
            return f"{cloud.id} is gone; the run waits for it"
        if cloud is not None and cloud.doing == "paused":
            return "paused: no round is opened"
        if progress.phase == "exporting":
            return "the rounds are over: the ensemble and its ONNX file are being made"
        if progress.phase == "finishing":
            return "the rounds are over: the overlays train to their end"
        if progress.phase == "waiting":
            here = sum(
                1 for each in self.nodes.values() if each.tier == "device" and lights[each.id][0] not in {"gone", "out"}
            )
            return f"waiting for devices: {here} {'is' if here == 1 else 'are'} here"
        this = progress.open
        if this is None:
            return f"round {progress.round} of {progress.rounds}"
        shown = this.shown()
        text = f"round {this.number} of {progress.rounds or '?'}: {shown['answered']} of {shown['asked']} devices have answered"
        if shown["missing"] and shown["answered"]:
            text += f", waiting for {some(this.missing())}"
        return text

    def _in_order(self) -> list[Node]:
        """The cloud, then edges, each with its devices, then devices without."""
        rank = {"cloud": 0, "edge": 1, "device": 1}

        def place(node: Node) -> tuple[int, bool, str, bool, str]:
            edge = node.id if node.tier == "edge" else node.edge
            return rank.get(node.tier, 2), not edge, edge, node.tier == "device", node.id

        return sorted(self.nodes.values(), key=place)

    def shown(self, lights: Mapping[str, tuple[Light, str]]) -> dict[str, dict[str, Any]]:
        """Every node, by its id, as in the state; in no order."""
        return {name: node.shown(*lights[name]) for name, node in self.nodes.items()}

    def node(self, name: str, now: float) -> dict[str, Any] | None:
        """One node with its figures and last events; None: there is no such one."""
        node = self.nodes.get(name)
        if node is None:
            return None
        numbers = set(node.events)
        events = [entry.shown() for entry in self.events.newest_first() if entry.number in numbers]
        return {
            **node.shown(*self.lights(now)[name]),
            "figures": dict(sorted(node.figures.items())),
            "told": {key: round(at, 1) for key, at in sorted(node.told.items())},
            "events": events,
        }

    def history(self) -> dict[str, Any]:
        """As GET /api/history has it."""
        columns = self._bytes.columns()
        return {
            "run": self.progress.run or None,
            "rounds": self.progress.shown(),
            "waited": {
                str(this): {"device": device, "seconds": round(seconds, 2)}
                for this, (device, seconds) in self.progress.waited.items()
            },
            "series": {
                "time": columns["time"],
                "fl_bytes": columns["fl"],
                "activation_bytes": columns["activations"],
                "report_bytes": columns["reports"],
                "sent_share": columns["sent_share"],
                "by_kind": {kind: columns[kind] for kind in BY_KIND},
            },
            "edges": {edge: series.columns() for edge, series in sorted(self._edges.items())},
            "endpoint": self._served.columns(),
        }

    def log(
        self, limit: int = 200, before: int | None = None, node: str = "", name: str = "", level: str = ""
    ) -> list[dict[str, Any]]:
        """Entries, newest first."""
        found: list[dict[str, Any]] = []
        for entry in self.events.newest_first(before, node, name, level):
            if len(found) >= limit:
                break
            found.append(entry.shown())
        return found


def _names(value: Any) -> list[str]:
    return [each for each in value if valid_id(each)] if isinstance(value, list) else []


def _places(members: Members) -> Iterable[tuple[str, str]]:
    yield members.cloud, ""
    for edge, devices in members.edges.items():
        yield edge, ""
        for device in devices:
            yield device, edge


def _age(figures: Mapping[str, float]) -> float | None:
    """The mean age of cached batches, in rounds, by the histogram that the edge tells."""
    total = weighted = 0.0
    for key, count in figures.items():
        least = key.removeprefix("cache.age.")
        if least != key and least.isascii() and least.isdigit() and len(least) < 10 and 0 <= count < MOST:
            total += count
            weighted += count * int(least)
    return round(weighted / total, 2) if total else None
