"""What all nodes of a run must have alike: classes, input, normalisation, model, split. Each says it in its Status; the cloud
compares, and refuses whoever differs: such a run would train on, and come to nothing.

    {"classes": '["ant", "bee"]', "mean": "127.5", "model": "cnn, width 1, norm group", ...}

What a node does not say of itself, as an edge of classes, is not compared.
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

# Bytes as JSON. With what else a Status holds they fit into a packet of the smallest size that is allowed.
_CLASSES, _SCALE = 1500, 400
_BEFORE, _SHOWN = 20, 120  # characters of one fact in a sentence, from a little before where it differs


def facts(
    model: Model, split: Sequence[int], data: Dataset | None = None, **weights: Weights
) -> dict[str, str]:
    """By name, what is so here. `split`: shape of a sample's activation; `weights`: of parts of the network, of which names,
    shapes and dtypes count."""
    name = model.name.rpartition(":")[2]  # whatever its module is called here
    found = {
        "model": f"{name}, width {model.width:g}, norm {model.norm}",
        "input": _numbers(model.input),
        "split": _numbers(split),
    }
    if data is not None:
        names = [unicodedata.normalize("NFC", each) for each in data.classes]
        found["classes"] = _short(json.dumps(names, ensure_ascii=False), _CLASSES, f"{len(names)} names")
        found["mean"] = _short(_numbers(data.mean), _SCALE, "numbers")
        found["std"] = _short(_numbers(data.std), _SCALE, "numbers")
    for part, arrays in weights.items():
        like = "\n".join(f"{key} {array.dtype} {array.shape}" for key, array in arrays.items())
        found[part] = f"{len(arrays)} tensors, sha256 {_digest(like)}"
    return found


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """For the node whose facts are `theirs`, in one line; empty where all are alike."""
    said = []
    for key, mine in ours.items():
        yours = theirs.get(key, mine)
        if yours != mine:
            alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(mine, yours, strict=False)))
            start = max(0, alike - _BEFORE)
            one, other = (f"{'...' * (start > 0)}{text[start:][:_SHOWN]}" for text in (yours, mine))
            said.append(f"{key} is {one} there and {other} at the cloud")
    return printable("; ".join(said), 450)


def _short(text: str, most: int, what: str) -> str:
    return text if len(json.dumps(text)) <= most else f"{what}, sha256 {_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(map(str, values))  # of a float32 as few digits as tell it from its neighbours
