"""What to say when a package that only some machines need is not installed."""

import contextlib
import importlib.util
from collections.abc import Iterator

from emo.errors import EmoError

_SERVE = ("onnxruntime", "uvicorn", "PIL")
_DEMO = ("torch", "h5py", "threadpoolctl", "onnx", "onnxscript", *_SERVE, "amqtt", "rich", "psutil")
# What the commands of an extra import in any case; it has more, as for TLS.
_MODULES = {
    "pki": ("cryptography",),
    "device": ("torch",),
    "edge": ("torch", "h5py", "threadpoolctl"),
    "serve": _SERVE,
    "cloud": ("torch", "onnx", "onnxscript", *_SERVE),
    "demo": _DEMO,
    "study": (*_DEMO, "matplotlib"),
}


def missing(extra: str) -> bool:
    """Whether a package of it is not installed here. Imports none."""
    return any(importlib.util.find_spec(name) is None for name in _MODULES[extra])


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around the import of a tier. Raises EmoError that names the extra when a package of it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise EmoError(f"{error.name} is not installed here: pip install 'emo-overlays[{extra}]'") from error
