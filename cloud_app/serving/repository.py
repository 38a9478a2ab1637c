"""A folder of models in Triton's layout.

    models/NAME/config.pbtxt  labels.txt  1/model.onnx  1/selftest.json  2/model.onnx ...

A version is written whole or not at all, and never changed afterwards. The current version is the newest, unless
config.pbtxt's version policy names one; Triton reads the same line. Source: Triton's model repository and model configuration documents.
"""

import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from cloud_app.serving.triton_config import describe, pin, pinned, unpinned
from emo.config import Id
from emo.errors import ServeError

_MAX_TEXT = 16 << 20
_MAX_CONFIG = 256 << 10
_MAX_LABELS = 1 << 20
_MAX_MODEL = (2 << 30) - 1  # of protobuf
_MOST_ENTRIES = 10_000
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

    def current(self, name: str) -> int:
        """The version to serve: the one promoted, else the newest. Raises ServeError when it is not there."""
        latest = self.latest(name)
        promoted = self.promoted(name)
        if promoted is not None and promoted not in self.versions(name):
            raise ServeError(
                f"{self._folder(name)}: config.pbtxt asks for version {promoted}, which is not here; "
                f"`emo models promote` names another"
            )
        return latest if promoted is None else promoted

    def promoted(self, name: str) -> int | None:
        """The version that config.pbtxt names (the highest of several); None where the newest is served."""
        named = pinned(self._config(name))
        return max(named) if named else None

    def path(self, name: str, version: int) -> Path:
        """The ONNX file. Raises ServeError when there is no such version."""
        if version not in self.versions(name):
            raise ServeError(f"{self.root}: model {name!r} has no version {version}")
        return self._folder(name) / str(version) / "model.onnx"

    def model(self, name: str, version: int) -> bytes:
        """The ONNX file's content. Raises ServeError as `path`, and when it cannot be read or is too large for one."""
        path = self.path(name, version)
        return _bytes(path, _MAX_MODEL)

    def labels(self, name: str) -> tuple[str, ...]:
        """In the order of the logits; empty for a model that was put here without any."""
        return tuple(_read(self._folder(name) / "labels.txt", _MAX_LABELS).splitlines())

    def selftest(self, name: str, version: int) -> str | None:
        """What `add` was given as such; None for a version that has none."""
        return _read(self.path(name, version).with_name("selftest.json"), _MAX_TEXT) or None

    def check(self, name: str, labels: Sequence[str], input_shape: tuple[int, ...], dtype: str = "uint8") -> None:
        """Could `add` take this model? Ask before a long run, not after it.

        config.pbtxt and labels.txt stand for all versions of a name: a model with other classes or another input
        needs another name. Raises ServeError saying so, or what is wrong with the arguments.
        """
        for file, text in describe(name, labels, input_shape, dtype).items():
            present = self._folder(name) / file
            if present.exists() and unpinned(_read(present, _MAX_LABELS)) != text:
                raise ServeError(
                    f"{present}: the versions of {name!r} have other classes or another input than this model"
                    f" ({len(labels)} classes, {dtype} {list(input_shape)}); choose another name"
                )

    def try_writing(self, name: str) -> None:
        """Raises ServeError where `add` could not write, and leaves the folder of models."""
        folder = self._folder(name)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for parent in (self.root, folder):
                if parent.exists():
                    with _staged(parent):
                        pass
        except OSError as error:
            raise ServeError(f"{error.filename}: cannot be written: {error.strerror}") from error

    def add(
        self,
        name: str,
        onnx: Path,
        labels: Sequence[str],
        input_shape: tuple[int, ...],
        dtype: str = "uint8",
        selftest: str | None = None,
    ) -> int:
        """Copies `onnx` in as the next version, and returns its number (from 1).

        `input_shape`: of one sample, (C, H, W). `dtype`: "uint8" or "float32". `selftest`: what `known_answer.make` made
        of this file, for the endpoint to ask before it serves it. Another process sees the whole version or none.
        Raises ServeError as `check` does, or when a file cannot be read or written.
        """
        self.check(name, labels, input_shape, dtype)
        folder = self._folder(name)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with _staged(self.root) as whole:
                if not folder.exists():
                    for file, text in describe(name, labels, input_shape, dtype).items():
                        (whole / file).write_text(text, encoding="utf-8")
                    (whole / "1").mkdir()
                    _fill(whole / "1", onnx, selftest)
                    if _moved(whole, folder):
                        return 1
                    self.check(name, labels, input_shape, dtype)
            with _staged(folder) as one:
                _fill(one, onnx, selftest)
                while True:
                    taken = [int(each) for each in _listed(folder) if _VERSION.fullmatch(each)]
                    version = max(taken, default=0) + 1
                    if _moved(one, folder / str(version)):
                        return version
        except OSError as error:
            raise ServeError(f"{folder}: cannot add {onnx}: {error}") from error

    def promote(self, name: str, version: int | None) -> None:
        """From now on `version` is current, whatever is added; None: the newest, whatever it is. In one step.
        Raises ServeError when there is no such version."""
        if version is None:
            self.latest(name)
        else:
            self.path(name, version)
        file = self._folder(name) / "config.pbtxt"
        try:
            with _staged(self._folder(name)) as folder:
                new = folder / file.name
                new.write_text(pin(self._config(name), version), encoding="utf-8")
                _sync(new)
                new.replace(file)
        except OSError as error:
            raise ServeError(f"{file}: cannot be written: {error}") from error

    def rollback(self, name: str) -> int:
        """Promotes the version before the current one, and returns it. Raises ServeError when there is none."""
        current = self.current(name)
        older = [each for each in self.versions(name) if each < current]
        if not older:
            raise ServeError(f"{self.root}: model {name!r} has no version before {current} to go back to")
        self.promote(name, older[-1])
        return older[-1]

    def prune(self, name: str, keep: int) -> list[int]:
        """Deletes all versions but the newest `keep` (1 or more) and the current one; returns what went."""
        if keep < 1:
            raise ServeError(f"keep {keep}: at least one version has to stay")
        current = self.current(name)
        gone = [each for each in self.versions(name)[:-keep] if each != current]
        for version in gone:
            try:
                with _staged(self._folder(name)) as folder:
                    (self._folder(name) / str(version)).rename(folder / "pruned")
            except OSError as error:
                raise ServeError(f"{self._folder(name) / str(version)}: cannot be deleted: {error}") from error
        return gone

    def _config(self, name: str) -> str:
        return _read(self._folder(name) / "config.pbtxt", _MAX_CONFIG)

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
        with os.scandir(folder) as entries:
            names = [each.name for each in islice(entries, _MOST_ENTRIES + 1)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ServeError(f"{folder}: cannot be read: {error.strerror}") from error
    if len(names) > _MOST_ENTRIES:
        raise ServeError(f"{folder}: has over {_MOST_ENTRIES:,} entries; is it the right folder?")
    return sorted(names)


def _read(file: Path, most: int) -> str:
    """Empty where there is no such file."""
    try:
        return _bytes(file, most).decode()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise ServeError(f"{file}: cannot be read: {error}") from error


def _bytes(file: Path, most: int) -> bytes:
    """Raises FileNotFoundError; ServeError on anything else that keeps it from being read."""
    try:
        # Without waiting: whoever may write here may have put a pipe in its place, which nobody writes to.
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:  # noqa: PTH123
            about = os.fstat(opened.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise ServeError(f"{file}: is no regular file")
            data = opened.read(min(most, about.st_size) + 1)
    except NotADirectoryError as error:
        raise FileNotFoundError(error.errno, error.strerror) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ServeError(f"{file}: cannot be read: {error}") from error
    if len(data) > most:
        raise ServeError(f"{file}: is over {most:,} bytes; is it the right file?")
    return data


@contextlib.contextmanager
def _staged(parent: Path) -> Iterator[Path]:
    # No Id begins with a dot, so what a killed process leaves behind is never taken for a model or a version.
    folder = Path(tempfile.mkdtemp(prefix=".adding-", dir=parent))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fill(folder: Path, onnx: Path, selftest: str | None) -> None:
    shutil.copyfile(onnx, folder / "model.onnx")
    _sync(folder / "model.onnx")
    if selftest is not None:
        (folder / "selftest.json").write_text(selftest, encoding="utf-8")
        _sync(folder / "selftest.json")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
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
