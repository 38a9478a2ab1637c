"""Writes the text of a model's `config.pbtxt` and `labels.txt` for Triton, and reads the version policy that others wrote.

Source: Triton's model configuration document.
"""

import re
from collections.abc import Sequence

from emo.errors import ServeError

MAX_BATCH = 64
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
# One after the other and none twice, so that the time to read a text goes with its length, whoever wrote it.
_TOKENS = re.compile(r"""#[^\n]*|"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?|[{}<>\[\]]|[^\s#"'{}<>\[\]]+""")
_OPEN, _CLOSE = frozenset("{<["), frozenset("}>]")
_AFTER = re.compile(r"[ \t]*\n?")


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
    policy = _policy(config)
    if policy is None:
        return config
    begin, end = policy
    line = config.rfind("\n", 0, begin) + 1
    if config[line:begin].isspace():
        begin = line
    after = _AFTER.match(config, end)
    return config[:begin] + config[after.end() if after else end :]


def pin(config: str, version: int | None) -> str:
    """`config` with a policy that serves `version` alone; None: the newest, which is Triton's default."""
    rest = unpinned(config)
    if version is None:
        return rest
    return f"{rest}version_policy: {{ specific {{ versions: [ {version} ] }} }}\n"


def pinned(config: str) -> list[int]:
    """The versions that a specific policy names; empty for any other, or none."""
    policy = _policy(config)
    if policy is None:
        return []
    words = [word[0].strip(":,") for word in _TOKENS.finditer(config, *policy)]
    if "specific" not in words:
        return []
    numbers = [number for word in words if not word.startswith("#") for number in word.split(",")]
    return [int(each) for each in numbers if each.isascii() and each.isdigit() and len(each) < 10]


def _policy(config: str) -> tuple[int, int] | None:
    """Where the version policy begins and ends, if there is one at the top level."""
    depth, begin = 0, None
    for token in _TOKENS.finditer(config):
        text = token[0]
        if text in _OPEN:
            depth += 1
        elif text in _CLOSE:
            depth = max(0, depth - 1)
            if depth == 0 and begin is not None:
                return begin, token.end()
        elif depth == 0 and text != ":" and not text.startswith("#"):
            begin = token.start() if text.rstrip(":") == "version_policy" else None
    return None
