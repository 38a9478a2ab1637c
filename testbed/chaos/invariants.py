"""What must hold of a run whatever happened to it, read from what its tiers wrote: judged here, recomputed elsewhere.

logs      every line of every log is whole; no process wrote a traceback
ended     the run ended, nothing ended by itself, everything ended when it was asked to
closed    every round was closed once, with the members that were counted, and who is missing is named
counted   no update was lost or counted twice; what was counted is what the device has trained
forward   nothing went back: no round, no cached version; no overlay by more than its checkpoint allows
bits      the recorded members, trained anew, give the recorded models and the final one, bit for bit
cache     every cached batch is what its device computed in the round that its version says
unharmed  beside hostile nodes: no log can be forged or flooded, no process grows, what is served is no worse than the
          FL model
served    the ensemble of all edges that anything has reached was exported once and answers a request
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Event = Mapping[str, Any]
_LINE = 2000  # characters
_MIB = 1200
_EVENTS = 4 << 20  # bytes


class Violation(NamedTuple):
    """`invariant`: one of those above. `text`: what was seen, and where."""

    invariant: str
    text: str


class Closed(NamedTuple):
    """A round as it was recorded. `members`: device -> samples; `digest`: of the model that it gave."""

    asked: frozenset[str]
    members: Mapping[str, int]
    digest: str


def read(path: Path) -> tuple[list[Event], list[Violation]]:
    """The events of a log, and which lines are none."""
    events, wrong = list[Event](), list[Violation]()
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        return [], [Violation("logs", f"{path}: {error.strerror}")]
    if lines.pop():
        wrong.append(Violation("logs", f"{path}: its last line has no end"))
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict) or "event" not in event:
            wrong.append(Violation("logs", f"{path}:{number}: is no event: {line[:80]!r}"))
        else:
            events.append(event)
    return events, wrong


class Rounds:
    """The cloud's log as a story: each event is possible after those before it, or is a violation.

    `closed`: by number. `run`: its name, empty when none began."""

    def __init__(self, events: Iterable[Event], rounds: int, strict: bool, full: bool = False) -> None:
        """`rounds`: of the whole run. `strict`: nobody may have been left out. `full`: the cloud's disk was, for a while,
        so that it may have gone back to a round that it had closed, to close it again with the same members and bits."""
        self.run = ""
        self.closed: dict[int, Closed] = {}
        self.violations: list[Violation] = []
        self._rounds, self._strict, self._full = rounds, strict, full
        self._open = 0
        self._again = set[int]()  # closed, and open once more
        self._asked: dict[int, frozenset[str]] = {}
        self._counted: dict[int, dict[str, int]] = {}  # as it stands now
        self._ever: dict[int, dict[str, int]] = {}  # restarts forget some of them
        self._exported = 0
        known = {
            "begun": self._begun,
            "resumed": self._resumed,
            "opened": self._opened,
            "counted": self._count,
            "round": self._round,
            "exported": self._export,
        }
        for event in events:
            tell = known.get(event["event"])
            if tell is not None:
                try:
                    tell(event)
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    self._wrong("logs", f"cloud: {dict(event)} lacks or misstates {error}")
        self._end()

    def _wrong(self, invariant: str, text: str) -> None:
        self.violations.append(Violation(invariant, text))

    def _begun(self, event: Event) -> None:
        if self._asked:  # before the first round nobody has heard of a run
            self._wrong("forward", f"run {event['run']} began, though {self.run} had not ended")
        self.run = event["run"]

    def _resumed(self, event: Event) -> None:
        number, counted = event["round"], set(event["counted"])
        if event["run"] != self.run:
            self._wrong("forward", f"the cloud went on with run {event['run']} in place of {self.run}")
        collecting = event["phase"] == "collecting"
        if self._full and event["phase"] in {"collecting", "waiting"}:
            self._again |= {each for each in self.closed if each >= number}
            self._counted = {each: told for each, told in self._counted.items() if each < number}
            self._open = min(self._open, number if collecting else number - 1)
        if number < self._open:
            self._wrong("forward", f"the cloud was in round {self._open} and went on with round {number}")
        if not collecting:
            return
        ever = self._ever.get(number, {})
        if strange := counted - ever.keys():
            self._wrong("counted", f"round {number}: {_names(strange)} counted after a restart, never before")
        self._counted[number] = {device: ever.get(device, 0) for device in counted}
        self._ask(number, frozenset(event["sampled"]))

    def _opened(self, event: Event) -> None:
        if event["run"] != self.run:
            self._wrong("forward", f"round {event['round']} was opened for {event['run']}, not {self.run}")
        self._ask(event["round"], frozenset(event["devices"]))

    def _ask(self, number: int, asked: frozenset[str]) -> None:
        if number not in {self._open, self._open + 1}:
            self._wrong("forward", f"round {number} was opened after round {self._open}")
        if self._asked.setdefault(number, asked) != asked:
            self._wrong("forward", f"round {number} was opened for {_names(asked)} after it was for others")
        self._open = max(number, self._open)

    def _count(self, event: Event) -> None:
        number, device = event["round"], event["device"]
        counted = self._counted.setdefault(number, {})
        if number != self._open or number in self.closed.keys() - self._again:
            self._wrong("counted", f"an update of {device} for round {number} was counted in round {self._open}")
        if device not in self._asked.get(number, ()):
            self._wrong("counted", f"round {number}: an update of {device}, who was not asked")
        if device in counted:
            self._wrong("counted", f"round {number}: the update of {device} was counted twice")
        counted[device] = event["samples"]
        self._ever.setdefault(number, {})[device] = event["samples"]

    def _round(self, event: Event) -> None:
        number, left_out = event["round"], set(event["left_out"])
        closed = Closed(self._asked.get(number, frozenset()), dict(event["members"]), event["digest"])
        if number in self.closed:  # killed after the line, before the next checkpoint: it is written again
            if closed != self.closed[number]:
                self._wrong("closed", f"round {number} was closed twice, and not with the same members")
            self._again.discard(number)
            return
        if number != len(self.closed) + 1:
            self._wrong("forward", f"round {number} was closed after round {len(self.closed)}")
        members = closed.members.keys()
        if members | left_out != closed.asked or members & left_out:
            self._wrong(
                "closed",
                f"round {number} asked {_names(closed.asked)}, counted {_names(members)}, left out {_names(left_out)}",
            )
        if event["updates"] != len(members):
            self._wrong("closed", f"round {number} says {event['updates']} updates of {len(members)} members")
        if closed.members != self._counted.get(number, {}):
            told = _names(self._counted.get(number, {}))
            self._wrong("counted", f"round {number} counted {told}, and recorded {_names(members)}")
        if self._strict and left_out:
            self._wrong("counted", f"round {number} left out {_names(left_out)}, with time to wait")
        self.closed[number] = closed

    def _export(self, event: Event) -> None:
        self._exported += 1
        if event["run"] != self.run:
            self._wrong("served", f"run {event['run']} was exported, not {self.run}")

    def _end(self) -> None:
        if missing := [number for number in range(1, self._rounds + 1) if number not in self.closed]:
            self._wrong("closed", f"never closed: round {', '.join(map(str, missing))} of {self._rounds}")
        if self._exported != 1:
            self._wrong("served", f"the run was exported {self._exported} times")


def devices(logs: Mapping[str, Sequence[Event]], rounds: Rounds) -> list[Violation]:
    """Who was counted has trained, to the same bits each time; no device goes back."""
    wrong = []
    for device, events in sorted(logs.items()):
        latest, trained = 0, dict[int, set[str]]()
        for event in events:
            if event["event"] == "trained":
                number = event["round"]
                if event["run"] != rounds.run or number < latest:
                    what = f"round {number} of {event['run']} after round {latest} of {rounds.run}"
                    wrong.append(Violation("forward", f"{device} trained {what}"))
                latest = max(latest, number)
                trained.setdefault(number, set()).add(event.get("digest", ""))
        for number, digests in sorted(trained.items()):
            if len(digests) > 1:
                text = f"{device} trained round {number} to {len(digests)} different models"
                wrong.append(Violation("bits", text))
        wrong += [
            Violation("counted", f"round {number} counted {device}, who never trained it")
            for number, closed in sorted(rounds.closed.items())
            if device in closed.members and number not in trained
        ]
    return wrong


def edges(logs: Mapping[str, Sequence[Event]], run: str, most: int) -> list[Violation]:
    """An overlay that comes back has lost `most` steps at most (overlay.checkpoint_steps)."""
    wrong = []
    for edge, events in logs.items():
        latest = 0
        for event in events:
            if event["event"] == "run" and event["run"] != run:
                wrong.append(Violation("forward", f"{edge} took part in run {event['run']}, not {run}"))
            if event["event"] in {"resumed", "overlay"}:
                if event["steps"] < latest - most:
                    text = f"{edge}'s overlay stood at step {latest}, and then at {event['steps']}"
                    wrong.append(Violation("forward", text))
                latest = max(latest, event["steps"])
        if not any(event["event"] == "overlay" for event in events):
            wrong.append(Violation("ended", f"{edge} never sent its overlay"))
    return wrong


def untrained(logs: Mapping[str, Sequence[Event]]) -> set[str]:
    """Edges that said at last that nothing had reached them: the ensemble is made without."""
    said = {edge: [event["steps"] for event in events if event["event"] == "overlay"] for edge, events in logs.items()}
    return {edge for edge, steps in said.items() if steps and max(steps) == 0}


def ended(finished: bool, exits: Iterable[tuple[str, int, bool]], stubborn: Iterable[str]) -> list[Violation]:
    """`exits`: (process, status, whether its disk was full lately) of what ended by itself: for want of room it may."""
    wrong = [] if finished else [Violation("ended", "the run did not end")]
    for name, status, full in exits:
        if not full:
            wrong.append(Violation("ended", f"{name} ended by itself with status {status}"))
    return wrong + [Violation("ended", f"{name} did not end on SIGTERM") for name in stubborn]


def quiet(logs: Mapping[str, str]) -> list[Violation]:
    """`logs`: what each process printed."""
    wrong = []
    for name, text in logs.items():
        at = text.find("Traceback (most recent call last)")
        if at >= 0:
            last = text[at:].split("\n\n")[0].strip().splitlines()[-1]
            wrong.append(Violation("logs", f"{name} printed a traceback: {last[:200]}"))
    return wrong


def unharmed(
    printed: Mapping[str, str],
    peaks: Mapping[str, int],
    result: Mapping[str, Any],
    states: Mapping[str, Path],
) -> list[Violation]:
    """`printed` by each process; `peaks`: MiB that each held at most; `result` of the cloud; `states`: state_dir of each."""
    wrong = []
    for name, text in printed.items():
        for line in text.split("\n"):
            if len(line) > _LINE or not line.replace("\t", " ").isprintable():
                wrong.append(Violation("unharmed", f"{name} printed what others wrote: {line[:80]!r}"))
                break
    for name, held in peaks.items():
        if held > _MIB:
            wrong.append(Violation("unharmed", f"{name} grew to {held} MiB"))
    for name, folder in states.items():
        size = sum(path.stat().st_size for path in folder.glob("events*.jsonl"))
        if size > _EVENTS:
            wrong.append(Violation("unharmed", f"{name} wrote {size >> 10} KiB of events"))
    accuracy = result["accuracy"]
    if accuracy["fl"] is not None and accuracy["served"] < accuracy["fl"]:
        text = f"{accuracy['served']:.3f} is served, the FL model alone has {accuracy['fl']:.3f}"
        wrong.append(Violation("unharmed", text))
    return wrong


def _names(devices: Iterable[str]) -> str:
    return ", ".join(sorted(devices)) or "nobody"
