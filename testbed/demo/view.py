"""What `emo demo` shows: a line a round in a log, a live bar on a terminal, a table at the end."""

import argparse
import os
import shlex
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from testbed.units import size


class View:
    def __init__(self, rounds: int) -> None:
        self._console = Console(highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=rounds)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line of its own."""
        self._console.print(text, markup=False, soft_wrap=True)

    def show(self, event: dict[str, Any]) -> None:
        """One event of the cloud's journal."""
        if event["event"] == "round":
            accuracy = "" if event["accuracy"] is None else f"  FL accuracy {event['accuracy']:7.2%}"
            self._console.print(
                f"round {event['round']:3d}/{event['of']}  {event['updates']} of {event['sampled']} devices"
                f"  {event['seconds']:6.2f} s  loss {event['loss']:.3f}{accuracy}"
            )
            for device, why in event["left_out"].items():
                self._console.print(f"round {event['round']}: {device} is left out: {why}")
            last = event["round"] == event["of"]
            text = "overlays finish" if last else f"FL accuracy {event['accuracy'] or 0:.1%}"
            self._bar.update(self._task, completed=event["round"], description=text)
        elif event["event"] == "overlay":
            self._console.print(f"overlay of {event['edge']} is here, {event['steps']} steps")
        elif event["event"] == "exporting":
            self._bar.update(self._task, description="ensemble, ONNX")


def show_report(figures: dict[str, Any], args: argparse.Namespace) -> None:
    """The table, and how to repeat the request."""
    console = Console(highlight=False)
    accuracy, sent = figures["accuracy"], figures["bytes"]
    table = Table(
        title=f"{args.dataset}, {args.model} x {args.width:g}, {figures['rounds']} rounds",
        title_justify="left",
        show_header=False,
    )
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("accuracy: FL alone", f"{accuracy['fl']:.2%}")
    for number, value in enumerate(accuracy["boosted"], 1):
        table.add_row(f"accuracy: FL trunk + overlay {number} (boosted)", f"{value:.2%}")
    bagged = "none" if accuracy["bagged"] is None else f"{accuracy['bagged']:.2%}"
    table.add_row("accuracy: ensemble (bagged)", bagged, end_section=True)
    table.add_row("sent: FL, both ways", size(sent["fl"]))
    table.add_row("sent: activations, LAN only", size(sent["activations"]))
    table.add_row("split federated learning would send", size(sent["sfl_equivalent"]), end_section=True)
    table.add_row("batches sent of those offered", f"{figures['sent_fraction']:.1%}")
    table.add_row("overlay steps", f"{figures['overlay_steps']:,}")
    table.add_row("seconds", f"{figures['seconds']:.0f}")
    console.print(table)
    console.print(f"model: {os.path.relpath(figures['onnx'])}", soft_wrap=True)
    if figures["instead"]:
        console.print(f"it is the FL model alone: {figures['instead']}", soft_wrap=True)
    run, models = (shlex.quote(os.path.relpath(each)) for each in (figures["run"], args.out / "models"))
    console.print(f"another of its weights: emo export --run {run} --out {models} --head", soft_wrap=True)
    if not args.keep:
        console.print(f"to look again: emo watch --run {run}", soft_wrap=True)
    asked = figures["prediction"]
    if asked is None:
        return
    console.print(
        f"asked the endpoint: {os.path.relpath(asked['image'])} is {asked['label']!r} "
        f"({asked['probability']:.1%}); the label is {asked['truth']!r}",
        soft_wrap=True,
    )
    if not args.keep:
        console.print(f"to ask again: emo serve --models {shlex.quote(os.path.relpath(args.out / 'models'))}   then")
        console.print(f"  emo predict {shlex.quote(os.path.relpath(asked['image']))}", soft_wrap=True)
    else:
        console.print(f"to ask again: {asked['command']}", soft_wrap=True)
