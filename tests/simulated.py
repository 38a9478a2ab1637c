"""A method that trains nothing: its weights are drawn, so that a run of it takes no time and can still go wrong."""

import threading
from pathlib import Path

import numpy as np
from torch import nn

from emo.config import Data, Model
from emo.errors import ModelError
from emo.models import split_network
from emo.models.layers import Parts
from testbed.plan import DeviceWork, Plan, RoundTime, RoundWork

SPEC = Model(name="cnn", width=0.5, input=(1, 8, 8), classes=10)


def plan(**values: object) -> Plan:
    small = {"method": "fl-small", "data": Data(), "model": SPEC, "devices": 10, "per_round": 4, "rounds": 7}
    return Plan.model_validate({**small, "evaluate_every": 3, **values})


class Drawn:
    """Every round adds noise that depends on all before it. `stop_at`, `fail_at`: rounds in which it happens."""

    closed = 0
    stop: threading.Event | None = None
    stop_at = fail_at = -1

    def __init__(self, plan: Plan, folder: Path) -> None:
        assert not list(folder.iterdir())
        (folder / "cache").write_text("of a round")
        self._plan = plan
        self._net = split_network.network(plan.model, plan.seed)
        self._weights = split_network.weights(self._net)
        self._rng = np.random.default_rng(plan.seed)
        self._number = 0

    def round(self, number: int) -> tuple[RoundWork, RoundTime]:
        assert number == self._number + 1
        if number == self.fail_at:
            raise OSError("the disk is full")
        if number == self.stop_at and self.stop is not None:
            self.stop.set()
        self._number = number
        for name, array in self._weights.items():
            self._weights[name] = array + self._rng.standard_normal(array.shape).astype(array.dtype)
        loss = float(np.abs(self._weights["head.1.bias"]).sum())
        emo = self._plan.method == "emo"
        up = {"Update": 1000 + number} | ({"ActivationBatch": 300, "TapReport": 7} if emo else {})
        down = {"GlobalModel": 2000} | ({"Interval": 11} if emo else {})
        devices = tuple(DeviceWork(d, 2, 32, dict(down), dict(up)) for d in range(self._plan.per_round))
        last = emo and number == self._plan.rounds
        work = RoundWork(
            number,
            devices,
            loss,
            8 if emo else 0,
            6 if emo else 0,
            (3, 4) if emo else (),
            (500, 600) if last else (),
        )
        return work, RoundTime(2.5, dict.fromkeys(range(3), 2.0), {"compute": 2.0, "upload": 0.5})

    def accuracies(self) -> dict[str, float]:
        return {"model": 100 / (1 + self._rng.random() + self._number)}

    def weights(self) -> dict[str, dict[str, np.ndarray]]:
        parts: dict[str, dict[str, np.ndarray]] = {"trunk": {}, "head": {}}
        for name, array in self._weights.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = array
        return parts

    def save(self, folder: Path) -> None:
        assert not list(folder.iterdir())
        state = np.array(str(self._rng.bit_generator.state["state"]["state"]))
        np.savez(folder / "state.npz", allow_pickle=False, number=self._number, rng=state, **self._weights)

    def load(self, folder: Path) -> None:
        with np.load(folder / "state.npz", allow_pickle=False) as file:
            arrays = dict(file)
        self._number = int(arrays.pop("number"))
        state = self._rng.bit_generator.state
        state["state"]["state"] = int(str(arrays.pop("rng")))
        self._rng.bit_generator.state = state
        self._weights = arrays

    def close(self) -> None:
        type(self).closed += 1


def no_overlay(spec: Model) -> Parts:
    """A network of one's own that ends at its head."""
    made = split_network.parts(SPEC.model_copy(update={"width": spec.width}))

    def overlay() -> nn.Module:
        raise ModelError("this network has no overlay")

    return made._replace(overlay=overlay)
