"""The text of a model's `config.pbtxt` and `labels.txt`, as Triton reads them.

Knows Triton's model configuration where we write it, and its version policy where others did. Knows no files.
Source: Triton's model configuration document.
"""

import re
from collections.abc import Sequence

from emo.errors import ServeError

MAX_BATCH = 64
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
_POLICY = re.compile(r"^\s*version_policy\s*:?\s*\{[^{}]*(?:\{[^{}]*\}[^{}]*)?\}[ \t]*\n?", re.MULTILINE)
_SPECIFIC = re.compile(r"specific\s*:?\s*\{\s*versions\s*:\s*\[?([\d\s,]*)\]?\s*\}")


def describe(name: str, labels: Sequence[str], input_shape: tuple[int, ...], dtype: str) -> dict[str, str]:
    """The files that stand for all versions of a model: name -> text. `input_shape`: of one sample.

    Raises ServeError on what Triton or the endpoint could not serve.
    """
    if dtype not in _TYPES:
        raise ServeError(f"model {name!r}: input is {dtype}, an endpoint takes {' or '.join(_TYPES)}")
    if len(labels) < 2 or not all(label and label.splitlines() == [label] for label in labels):
        raise ServeError(f"model {name!r}: needs two labels or more, each one line of text")
    if not input_shape or min(input_shape) < 1:
        raise ServeError(f"model {name!r}: input shape {list(input_shape)}: every size has to be 1 or more")
    dims = ", ".join(str(size) for size in input_shape)
    config = f"""name: "{name}"
backend: "onnxruntime"
max_batch_size: {MAX_BATCH}
input [
  {{ name: "images" data_type: {_TYPES[dtype]} dims: [ {dims} ] }}
]
output [
  {{ name: "logits" data_type: TYPE_FP32 dims: [ {len(labels)} ] label_filename: "labels.txt" }},
  {{ name: "probabilities" data_type: TYPE_FP32 dims: [ {len(labels)} ] label_filename: "labels.txt" }}
]
dynamic_batching {{ }}
"""
    return {"config.pbtxt": config, "labels.txt": "".join(f"{label}\n" for label in labels)}


def unpinned(config: str) -> str:
    """`config` without its version policy: what all versions share."""
    return _POLICY.sub("", config)


def pin(config: str, version: int | None) -> str:
    """`config` with a policy that serves `version` alone; None: the newest, which is Triton's default."""
    rest = unpinned(config)
    if version is None:
        return rest
    return f"{rest}version_policy: {{ specific {{ versions: [ {version} ] }} }}\n"


def pinned(config: str) -> list[int]:
    """The versions that a specific policy names; empty for any other, or none."""
    policy = _POLICY.search(config)
    found = _SPECIFIC.search(policy[0]) if policy else None
    return [int(each) for each in re.findall(r"\d{1,9}", found[1])] if found else []
