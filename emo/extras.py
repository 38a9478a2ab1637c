"""Errors for packages that are not installed, since only some machines need them."""

import contextlib
import importlib.util
from collections.abc import Iterator

from emo.errors import EmoError

_WEB = ("uvicorn", "starlette", "prometheus_client")
_SERVE = ("onnxruntime", *_WEB, "PIL")
_DEMO = ("torch", "h5py", "threadpoolctl", "onnx", "onnxscript", *_SERVE, "amqtt", "rich", "psutil")
# Those that its commands import in any case: an extra has more, for TLS, say.
_MODULES = {
    "pki": ("cryptography",),
    "device": ("torch",),
    "edge": ("torch", "h5py", "threadpoolctl"),
    "watch": _WEB,
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow",),
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
