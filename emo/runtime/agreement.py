"""Checks that all nodes of a run agree on classes, input, normalisation, model and split. Each says in its Status what it
has; the cloud compares, and refuses a node that differs: with it a run would train on and come to nothing.

    {"classes": '["ant", "bee"]', "mean": "127.5", "model": "cnn, width 1, norm group", ...}

What a node does not state, as an edge its classes, is not compared.
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile

from emo.config import Model
from emo.data.dataset import Dataset
from emo.logs import printable
from emo.wire.compression import Weights

# Bytes as JSON. With the rest of a Status they fit into a packet of the smallest size that is allowed.
_CLASSES, _SCALE = 1500, 400
_BEFORE, _SHOWN = 20, 120  # characters of a fact in a sentence: before the first difference, and in all


def facts(model: Model, split: Sequence[int], data: Dataset | None = None, **weights: Weights) -> dict[str, str]:
    """What this node has, by name. `split`: shape of a sample's activation; `weights`: of parts of the network; their names,
    shapes and dtypes count."""
    name = model.name.rpartition(":")[2]  # the module may have another name elsewhere
    facts = {
        "model": f"{name}, width {model.width:g}, norm {model.norm}",
        "input": _numbers(model.input),
        "split": _numbers(split),
    }
    if data is not None:
        names = [unicodedata.normalize("NFC", label) for label in data.classes]
        facts["classes"] = _short(json.dumps(names, ensure_ascii=False), _CLASSES, f"{len(names)} names")
        facts["mean"] = _short(_numbers(data.mean), _SCALE, "numbers")
        facts["std"] = _short(_numbers(data.std), _SCALE, "numbers")
    for part, arrays in weights.items():
        shapes = "\n".join(f"{key} {array.dtype} {array.shape}" for key, array in arrays.items())
        facts[part] = f"{len(arrays)} tensors, sha256 {_digest(shapes)}"
    return facts


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """One line for the node whose facts are `theirs`; empty if they agree."""
    sentences = []
    for key, mine in ours.items():
        yours = theirs.get(key, mine)
        if yours != mine:
            alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(mine, yours, strict=False)))
            start = max(0, alike - _BEFORE)
            one, other = (f"{'...' * (start > 0)}{text[start:][:_SHOWN]}" for text in (yours, mine))
            sentences.append(f"{key} is {one} there and {other} at the cloud")
    return printable("; ".join(sentences), 450)


def _short(text: str, most: int, what: str) -> str:
    return text if len(json.dumps(text)) <= most else f"{what}, sha256 {_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(map(str, values))  # a float32 in as few digits as distinguish it
