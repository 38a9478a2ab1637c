"""Messages of every kind: hypothesis strategies, one fixed example each, and how to compare two."""

import dataclasses
from typing import Any, get_args

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from emo.config import CODECS, Form, Training, Whole
from emo.wire import frame, messages
from emo.wire.codec import Packed
from emo.wire.messages import Message

ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,15}", fullmatch=True)
rounds = st.integers(0, 2**31 - 1)
counts = st.integers(0, 2**53 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
_arrays = st.sampled_from(["<f4", "<f8", "<f2", "<i8", "<i4", "|u1"]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
_names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(lambda name: name != "__metadata__")
weights = st.dictionaries(_names, _arrays, max_size=3)
_activations = st.builds(
    Packed,
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=4, max_side=3)),
    st.sampled_from(CODECS),
)
_labels = st.sampled_from([2**8, 2**16, 2**31]).flatmap(
    lambda top: hnp.arrays("<i4", st.integers(0, 5), elements=st.integers(0, top - 1))
)
_forms = st.sampled_from(get_args(Form))
_training = st.builds(
    Training,
    epochs=st.integers(1, 100),
    lr=st.floats(1e-6, 10),
    momentum=st.floats(0, 0.99),
    update=_forms,
)
_reasons = st.text(st.characters(codec="utf-8"), max_size=100)
_words = st.text(st.characters(codec="utf-8"), max_size=20)
_single = st.none() | st.booleans() | st.integers(0, 2**53) | finite | _words
_told = _single | st.lists(_single, max_size=3) | st.dictionaries(_words, _single, max_size=3)

_FIELDS: dict[type[Message], dict[str, Any]] = {
    messages.Status: {
        "samples": counts,
        "facts": st.dictionaries(st.text(max_size=32), _reasons, max_size=3),
        "trouble": _reasons,
    },
    messages.GlobalModel: {
        "devices": st.lists(ids, max_size=3).map(tuple),
        "training": _training,
        "form": st.sampled_from(get_args(Whole)),
    },
    messages.Update: {"samples": st.integers(1, 2**24 - 1), "loss": st.none() | finite, "form": _forms},
    messages.Refused: {"reason": _reasons},
    messages.RunState: {"rounds": rounds, "phase": st.sampled_from(["training", "finishing", "done"])},
    messages.OverlayWeights: {"steps": counts, "attempted": counts, "sent": counts},
    messages.ActivationBatch: {"version": counts, "activations": _activations, "labels": _labels},
    messages.TapReport: {"attempted": counts, "sent": counts},
    messages.Interval: {"version": counts, "interval": st.floats(0, 1e9)},
    messages.CannotTrain: {"reason": _reasons},
    messages.Unfit: {"reason": _reasons},
    messages.GlobalHead: {"form": st.sampled_from(get_args(Whole))},
    messages.Report: {
        "run": st.just("") | ids,
        "edge": st.just("") | ids,
        "doing": _words,
        "trouble": _words,
        "figures": st.dictionaries(_words, finite, max_size=3),
        "intervals": st.text("09az.", max_size=64),
    },
    messages.Event: {"number": counts, "name": _words, "fields": st.dictionaries(_words, _told, max_size=3)},
    messages.RunHistory: {
        "rounds": rounds,
        "rows": st.lists(st.tuples(rounds, st.none() | finite, finite, finite, *[counts] * 4), max_size=3).map(tuple),
        "result": st.dictionaries(_words, finite, max_size=3),
    },
}
_COMMON: dict[str, Any] = {
    **dict.fromkeys(["run", "node", "member", "device", "edge"], ids),
    **dict.fromkeys(["round", "batch"], rounds),
    **dict.fromkeys(["online", "fresh"], st.booleans()),
    "role": st.sampled_from(get_args(messages.Role)),
    "time": finite,
    "weights": weights,
}


def of_kind(kind: type[Message]) -> st.SearchStrategy[Message]:
    names = [item.name for item in dataclasses.fields(kind)]
    return st.builds(kind, **{name: _FIELDS[kind].get(name, _COMMON.get(name)) for name in names})


any_message: st.SearchStrategy[Message] = st.one_of([of_kind(kind) for kind in frame.KINDS])


def examples() -> list[Message]:
    """One small message of each kind, in the order of frame.KINDS."""
    arrays = {"a.weight": np.arange(6, dtype="<f4").reshape(2, 3), "a.steps": np.array(7)}
    activations = Packed(np.linspace(0, 1, 12, dtype=np.float32).reshape(2, 3, 2), "fp16")
    return [
        messages.Status("dev-1", "device", online=True, samples=64),
        messages.GlobalModel("run1", 3, ("dev-1", "dev-2"), Training(), arrays),
        messages.Update("run1", "dev-1", 3, 64, 0.25, arrays),
        messages.Refused("run1", "dev-1", 3, "NaN in a.weight"),
        messages.RunState("run1", 3, 20, "training"),
        messages.OverlayWeights("run1", "edge-1", 10, 20, 15, arrays),
        messages.ActivationBatch("run1", "edge-1", "dev-1", 5, 3, activations, np.array([1, 2], "<i4")),
        messages.TapReport("run1", "edge-1", "dev-1", 3, 20, 15),
        messages.Interval("run1", "edge-1", "dev-1", 5, 3, 12.5),
        messages.CannotTrain("run1", "dev-1", 3, "ValueError: a batch of one"),
        messages.Unfit("dev-1", "classes is ..."),
        messages.GlobalHead("run1", 3, arrays),
        messages.Report("dev-1", "device", "run1", 1.5, "edge-1", "trains round 3", "", {"train.loss": 0.5}, "04z."),
        messages.Event("dev-1", "device", 7, 1.5, "joined", {"devices": ["dev-1"], "left_out": {"dev-2": "late"}}),
        messages.RunHistory("run1", 20, ((1, None, 0.5, 2.0, 2, 2, 0, 1024),), {"fl": 0.5}),
    ]


def same(one: Message, two: Message) -> bool:
    """Equal, arrays to the bit."""
    return type(one) is type(two) and all(
        _same(getattr(one, item.name), getattr(two, item.name)) for item in dataclasses.fields(one)
    )


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Packed):
        return one.data() == two.data()
    if isinstance(one, np.ndarray):
        return bool(one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes())
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(_same(one[name], two[name]) for name in one)
    return bool(one == two)
