"""A folder of models in Triton's layout.

    models/NAME/config.pbtxt  labels.txt  1/model.onnx  2/model.onnx ...

Knows names, versions and files; never looks into a model. A version is written whole or not at all, and is never
changed afterwards. Source: Triton's model repository and model configuration documents.
"""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from emo.config import Id
from emo.errors import ServeError

MAX_BATCH = 64
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
_ID: TypeAdapter[str] = TypeAdapter(Id)
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


class Repository:
    """The models under `root`, which need not exist yet. Every method raises ServeError on a bad name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Of all models that have a version, sorted."""
        return [each for each in _listed(self.root) if _is_id(each) and self.versions(each)]

    def versions(self, name: str) -> list[int]:
        """Ascending; empty for an unknown name."""
        return sorted(
            int(each)
            for each in _listed(self._folder(name))
            if _VERSION.fullmatch(each) and (self._folder(name) / each / "model.onnx").is_file()
        )

    def latest(self, name: str) -> int:
        """The highest version. Raises ServeError when there is none."""
        versions = self.versions(name)
        if not versions:
            known = ", ".join(self.names()) or "it is empty"
            raise ServeError(f"{self.root}: no model {name!r} in this repository ({known})")
        return versions[-1]

    def path(self, name: str, version: int) -> Path:
        """The ONNX file. Raises ServeError when there is no such version."""
        if version not in self.versions(name):
            raise ServeError(f"{self.root}: model {name!r} has no version {version}")
        return self._folder(name) / str(version) / "model.onnx"

    def labels(self, name: str) -> tuple[str, ...]:
        """In the order of the logits; empty for a model that was put here without any."""
        try:
            return tuple((self._folder(name) / "labels.txt").read_text(encoding="utf-8").splitlines())
        except FileNotFoundError:
            return ()
        except (OSError, UnicodeDecodeError) as error:
            raise ServeError(f"{self._folder(name) / 'labels.txt'}: cannot be read: {error}") from error

    def check(
        self, name: str, labels: Sequence[str], input_shape: tuple[int, ...], dtype: str = "uint8"
    ) -> None:
        """Could `add` take this model? Ask before a long run, not after it.

        config.pbtxt and labels.txt stand for all versions of a name: a model with other classes or another input
        needs another name. Raises ServeError saying so, or what is wrong with the arguments.
        """
        for file, text in _describe(name, labels, input_shape, dtype).items():
            present = self._folder(name) / file
            if present.exists() and present.read_text(encoding="utf-8", errors="replace") != text:
                raise ServeError(
                    f"{present}: the versions of {name!r} have other classes or another input than this model"
                    f" ({len(labels)} classes, {dtype} {list(input_shape)}); choose another name"
                )

    def add(
        self, name: str, onnx: Path, labels: Sequence[str], input_shape: tuple[int, ...], dtype: str = "uint8"
    ) -> int:
        """Copies `onnx` in as the next version, and returns its number (from 1).

        `input_shape`: of one sample, (C, H, W). `dtype`: "uint8" or "float32". Another process sees the whole
        version or none. Raises ServeError as `check` does, or when a file cannot be read or written.
        """
        self.check(name, labels, input_shape, dtype)
        folder = self._folder(name)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with _staged(self.root) as whole:
                if not folder.exists():
                    for file, text in _describe(name, labels, input_shape, dtype).items():
                        (whole / file).write_text(text, encoding="utf-8")
                    (whole / "1").mkdir()
                    _copy(onnx, whole / "1" / "model.onnx")
                    if _moved(whole, folder):
                        return 1
                    self.check(name, labels, input_shape, dtype)
            with _staged(folder) as one:
                _copy(onnx, one / "model.onnx")
                while True:
                    taken = [int(each) for each in _listed(folder) if _VERSION.fullmatch(each)]
                    version = max(taken, default=0) + 1
                    if _moved(one, folder / str(version)):
                        return version
        except OSError as error:
            raise ServeError(f"{folder}: cannot add {onnx}: {error}") from error

    def _folder(self, name: str) -> Path:
        if not _is_id(name):
            raise ServeError(f"{name[:80]!r} is no model name: letters, digits and '._-', at most 64")
        return self.root / name


def _is_id(name: str) -> bool:
    try:
        _ID.validate_python(name)
    except ValidationError:
        return False
    return True


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - names are what is asked for
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ServeError(f"{folder}: cannot be read: {error.strerror}") from error


def _describe(name: str, labels: Sequence[str], input_shape: tuple[int, ...], dtype: str) -> dict[str, str]:
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


@contextlib.contextmanager
def _staged(parent: Path) -> Iterator[Path]:
    # No Id begins with a dot, so what a killed process leaves behind is never taken for a model or a version.
    folder = Path(tempfile.mkdtemp(prefix=".adding-", dir=parent))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy(onnx: Path, to: Path) -> None:
    shutil.copyfile(onnx, to)
    with to.open("rb") as file:
        os.fsync(file.fileno())


def _moved(source: Path, target: Path) -> bool:
    """False when another process was faster: a folder with something in it is never replaced."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in {errno.EEXIST, errno.ENOTEMPTY}:
            return False
        raise
    parent = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
    return True
