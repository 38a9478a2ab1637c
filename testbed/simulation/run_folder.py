"""The folder of a simulated run: what was asked, a line a round, the last checkpoint, the result.

    DIR/plan.json             Header: the plan, the scenario, what it assumes
    DIR/rounds.jsonl          Row: one JSON line a round, written when the round is over
    DIR/checkpoint-N/         the method as it was after round N; one of them, the newest
    DIR/weights.safetensors   the served model's parts (cloud_app/ensemble/run_archive.py)
    DIR/result.json           Result; there is one when the run is over

The JSON files are for people and tools too.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
from pydantic import Field

from cloud_app.ensemble import run_archive
from emo import files
from emo.config import Positive, Section
from emo.errors import ConfigError, DataError
from emo.wire.messages import Weights
from emo.wire.topics import Link
from testbed.plan import MethodName, Plan, RoundTime, RoundWork
from testbed.timing.round_time import link
from testbed.timing.scenario import Scenario

Device = Literal["cpu", "cuda"]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Percents = dict[str, Annotated[float, Field(ge=0, le=100)]]
_LIMIT = 256 << 20  # bytes of a file that is read; a line a round takes about one KiB


class Header(Section):
    """`device`: on which the nets train; another one's rounding differs."""

    version: str
    plan: Plan
    scenario: Scenario
    device: Device = "cpu"
    assumptions: tuple[str, ...]


class Traffic(Section):
    """Bytes on one link, by the class of the message."""

    up: dict[str, Count]
    down: dict[str, Count]

    @property
    def total(self) -> int:
        return sum(self.up.values()) + sum(self.down.values())


class Total(Section):
    """Of all rounds so far: bytes on each link, seconds, batches offered to the policy and let through."""

    lan: Count = 0
    wan: Count = 0
    virtual_s: Seconds = 0.0
    real_s: Seconds = 0.0
    attempted: Count = 0
    sent: Count = 0
    sent_fraction: Fraction | None = None


class Row(Section):
    """One round. `devices` were sampled, updates of `arrived` came in time. `loss`: None where it was not finite.
    `accuracies`: percent, empty where the plan asks for none. `parts`: where `virtual_s` went;
    `beside`: what took time and held up nothing. `steps`: of the overlays, by edge. Two runs of one seed differ in `real_s` only."""

    round: Positive
    devices: Count
    arrived: Count
    loss: float | None
    accuracies: Percents
    lan: Traffic
    wan: Traffic
    attempted: Count = 0
    sent: Count = 0
    sent_fraction: Fraction | None = None
    steps: tuple[Count, ...] = ()
    virtual_s: Seconds
    parts: dict[str, Seconds]
    beside: dict[str, Seconds]
    real_s: Seconds
    total: Total


class Result(Section):
    """`accuracies`: after the last round, percent; "model" is what would be served."""

    rounds: Positive
    accuracies: Percents
    total: Total


S = TypeVar("S", bound=Section)


def row(
    method: MethodName,
    work: RoundWork,
    time: RoundTime,
    real_s: float,
    accuracies: Mapping[str, float],
    before: Total,
) -> Row:
    """What is written of a round; `before`: the total of the rounds before it."""
    links: dict[Link, dict[str, dict[str, int]]] = {
        "lan": {"up": {}, "down": {}},
        "wan": {"up": {}, "down": {}},
    }
    for device in work.devices:
        for way, sizes in (("up", device.up), ("down", device.down)):
            for kind, count in sizes.items():
                counts = links[link(method, kind)][way]
                counts[kind] = counts.get(kind, 0) + count
    for way, overlays in (("up", work.overlays), ("down", work.overlays_down)):
        if any(overlays):
            links["wan"][way]["OverlayWeights"] = sum(overlays)
    if work.heads:
        links["wan"]["down"]["GlobalHead"] = work.heads
    lan, wan = (Traffic.model_validate(links[each]) for each in ("lan", "wan"))
    attempted, sent = before.attempted + work.attempted, before.sent + work.sent
    return Row(
        round=work.number,
        devices=len(work.devices),
        arrived=len(time.arrivals),
        loss=work.loss if np.isfinite(work.loss) else None,
        accuracies=dict(accuracies),
        lan=lan,
        wan=wan,
        attempted=work.attempted,
        sent=work.sent,
        sent_fraction=work.sent / work.attempted if work.attempted else None,
        steps=work.steps,
        virtual_s=time.seconds,
        parts=time.parts,
        beside=time.beside,
        real_s=real_s,
        total=Total(
            lan=before.lan + lan.total,
            wan=before.wan + wan.total,
            virtual_s=before.virtual_s + time.seconds,
            real_s=before.real_s + real_s,
            attempted=attempted,
            sent=sent,
            sent_fraction=sent / attempted if attempted else None,
        ),
    )


class Run:
    """The folder `out` of a run whose plan.json is there. `rows`: of the rounds that are over."""

    def __init__(self, out: Path) -> None:
        """Raises ConfigError where `out` holds no run, DataError where what it holds is damaged."""
        self.out = out
        if not (out / "plan.json").is_file():
            raise ConfigError(f"{out}: holds no run (no plan.json); `emo simulate --out {out}` starts one")
        self.header = _parse(Header, out / "plan.json")
        self.rows = _rows(out / "rounds.jsonl")
        done = out / "result.json"
        self.result = _parse(Result, done) if done.exists() else None

    @classmethod
    def begin(cls, out: Path, header: Header) -> "Run":
        """Raises ConfigError where `out` holds a run already, or cannot be written."""
        if (out / "plan.json").exists():
            raise ConfigError(f"{out}: holds a run already; --resume goes on with it, --out names another")
        try:
            out.mkdir(parents=True, exist_ok=True)
            _replace(out / "rounds.jsonl", "")
            _replace(out / "plan.json", header.model_dump_json(indent=1) + "\n")
        except OSError as error:
            raise ConfigError(f"{out}: cannot be written: {error.strerror}") from error
        return cls(out)

    @property
    def total(self) -> Total:
        return self.rows[-1].total if self.rows else Total()

    def add(self, row: Row) -> None:
        with (self.out / "rounds.jsonl").open("a", encoding="utf-8") as file:
            file.write(row.model_dump_json() + "\n")
        self.rows.append(row)

    def checkpoint(self, save: Callable[[Path], None]) -> None:
        """`save` gets an empty folder, which then becomes the checkpoint of the last round, whole or not at all."""
        part, last = self.out / "checkpoint.part", self._checkpoint(len(self.rows))
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        save(part)
        shutil.rmtree(last, ignore_errors=True)
        part.rename(last)
        self._forget(last)

    def back(self) -> Path | None:
        """Drops the rounds after the newest checkpoint, and returns its folder; without one there are no rounds.
        Raises DataError where rounds before it are missing."""
        number = max(self._checkpoints(), default=0)
        if number > len(self.rows):
            raise DataError(
                f"{self.out}: has a checkpoint of round {number}, but rounds.jsonl ends with {len(self.rows)}"
            )
        del self.rows[number:]
        _replace(self.out / "rounds.jsonl", "".join(each.model_dump_json() + "\n" for each in self.rows))
        return self._checkpoint(number) if number else None

    def finish(self, parts: Mapping[str, Weights]) -> None:
        """After the last round: writes the weights, then the result; then no checkpoint is needed any more."""
        run_archive.write_weights(self.out, parts)
        last = self.rows[-1]
        self.result = Result(rounds=last.round, accuracies=last.accuracies, total=last.total)
        _replace(self.out / "result.json", self.result.model_dump_json(indent=1) + "\n")
        self._forget(None)

    def weights(self) -> dict[str, dict[str, np.ndarray]]:
        """The parts of the served model, as `Method.weights` gave them. Raises DataError, and ConfigError where another
        version of EMO wrote them."""
        return run_archive.read_weights(self.out, DataError)

    def _checkpoint(self, number: int) -> Path:
        return self.out / f"checkpoint-{number}"

    def _checkpoints(self) -> list[int]:
        names = [path.name.removeprefix("checkpoint-") for path in self.out.glob("checkpoint-*")]
        return [int(name) for name in names if name.isascii() and name.isdigit() and len(name) < 10]

    def _forget(self, kept: Path | None) -> None:
        for number in self._checkpoints():
            if self._checkpoint(number) != kept:
                shutil.rmtree(self._checkpoint(number), ignore_errors=True)


def _rows(path: Path) -> list[Row]:
    """Whole lines only: a run that was killed may have left half of one."""
    lines = bytes(files.whole(path, _LIMIT, DataError)).split(b"\n")[:-1]
    rows = [files.record(Row, line, f"{path}, line {number}", DataError) for number, line in enumerate(lines, 1)]
    for number, each in enumerate(rows, 1):
        if each.round != number:
            raise DataError(f"{path}, line {number}: holds round {each.round}; lines are missing or doubled")
    return rows


def _parse(kind: type[S], path: Path) -> S:
    return files.record(kind, files.whole(path, _LIMIT, DataError), str(path), DataError)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
