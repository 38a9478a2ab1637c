"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from the official binary archives or their unpacked folders.

The layout is that of https://www.cs.toronto.edu/~kriz/cifar.html: records of label bytes and 3,072 pixel bytes, channel
by channel. Checks every size and label; writes nothing to disk. The python archives are pickles and are refused.
"""

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from emo.config import Data
from emo.data import archive
from emo.data.dataset import Dataset, constant
from emo.errors import DataError

PIXELS = 3 * 32 * 32
SLAB = 10_000  # records read at a time, so that memory holds the images once
_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""

CIFAR10_CLASSES = tuple(_CIFAR10.split())
CIFAR100_CLASSES = tuple(_CIFAR100.split())


@dataclass(frozen=True)
class Layout:
    """`files`: name -> (part, records). `labels`: how many values each label byte has; the last byte is the class."""

    name: str
    folder: str
    archive: str
    python: tuple[str, str]
    files: dict[str, tuple[str, int]]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray

    @property
    def record(self) -> int:
        return len(self.labels) + PIXELS

    def size(self, file: str) -> int:
        return self.files[file][1] * self.record


# Mean and std of the training images, in 0..255.
CIFAR10 = Layout(
    name="cifar10",
    folder="cifar-10-batches-bin",
    archive="cifar-10-binary.tar.gz",
    python=("cifar-10-python.tar.gz", "cifar-10-batches-py"),
    files={
        **{f"data_batch_{k}.bin": ("train", 10_000) for k in range(1, 6)},
        "test_batch.bin": ("test", 10_000),
    },
    labels=(10,),
    classes=CIFAR10_CLASSES,
    mean=constant(125.3, 123.0, 113.9),
    std=constant(63.0, 62.1, 66.7),
)
CIFAR100 = Layout(
    name="cifar100",
    folder="cifar-100-binary",
    archive="cifar-100-binary.tar.gz",
    python=("cifar-100-python.tar.gz", "cifar-100-python"),
    files={"train.bin": ("train", 50_000), "test.bin": ("test", 10_000)},
    labels=(20, 100),
    classes=CIFAR100_CLASSES,
    mean=constant(129.3, 124.1, 112.4),
    std=constant(68.2, 65.4, 70.4),
)


def load_cifar10(spec: Data) -> tuple[Dataset, Dataset]:
    return read(CIFAR10, spec.dir)


def load_cifar100(spec: Data) -> tuple[Dataset, Dataset]:
    return read(CIFAR100, spec.dir)


def read(layout: Layout, root: Path | None) -> tuple[Dataset, Dataset]:
    """(train, test), uint8 (N, 3, 32, 32). `root` holds the archive or the unpacked folder, or is that folder.

    Raises DataError: which file, what was expected, what was found.
    """
    starts, sizes = _starts(layout)
    images = {part: np.empty((n, PIXELS), np.uint8) for part, n in sizes.items()}
    labels = {part: np.empty(n, np.int64) for part, n in sizes.items()}
    missing = set(layout.files)
    try:
        for where, file, stream in _open(layout, root):
            if file not in missing:
                raise DataError(f"{where}: is there twice")
            missing.remove(file)
            part, records = layout.files[file]
            rows = slice(starts[file], starts[file] + records)
            _records(stream, where, layout, images[part][rows], labels[part][rows])
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(
            f"{root}: {layout.name}'s file is damaged or unreadable: {error}; {_download(layout)}"
        ) from error
    if missing:
        raise DataError(f"{root}: {layout.archive} lacks {', '.join(sorted(missing))}; {_download(layout)}")
    train, test = (
        Dataset(images[p].reshape(-1, 3, 32, 32), labels[p], layout.classes, layout.mean, layout.std)
        for p in ("train", "test")
    )
    return train, test


def _starts(layout: Layout) -> tuple[dict[str, int], dict[str, int]]:
    """Row of each file's first record: the archive's members come in any order, the samples must not. And each part's size."""
    starts, sizes = {}, {"train": 0, "test": 0}
    for file, (part, records) in layout.files.items():
        starts[file] = sizes[part]
        sizes[part] += records
    return starts, sizes


def _records(stream: BufferedIOBase, where: str, layout: Layout, images: np.ndarray, labels: np.ndarray) -> None:
    for start in range(0, len(images), SLAB):
        stop = min(start + SLAB, len(images))
        data = stream.read((stop - start) * layout.record)
        if len(data) != (stop - start) * layout.record:
            raise DataError(f"{where}: ends after {start} records, expected {len(images)}; {_download(layout)}")
        records = np.frombuffer(data, np.uint8).reshape(-1, layout.record)
        for byte, values in enumerate(layout.labels):
            wrong = np.flatnonzero(records[:, byte] >= values)
            if len(wrong):
                raise DataError(
                    f"{where}: record {start + wrong[0]} has label {records[wrong[0], byte]}, expected less "
                    f"than {values}: not {layout.name}'s file, or damaged; {_download(layout)}"
                )
        labels[start:stop] = records[:, len(layout.labels) - 1]
        images[start:stop] = records[:, len(layout.labels) :]


def _open(layout: Layout, root: Path | None) -> Iterator[tuple[str, str, BufferedIOBase]]:
    """(place for errors, file name, stream of exactly its size) for each of the layout's files."""
    if root is None:
        raise DataError(f"data.dir: name the folder that holds {layout.archive}; {_download(layout)}")
    if not root.is_dir():
        raise DataError(f"data.dir: {root} is not a folder; expected one that holds {layout.archive}")
    for folder in (root / layout.folder, root):
        if any((folder / file).is_file() for file in layout.files):
            yield from _unpacked(layout, folder)
            return
    path = root / layout.archive
    if path.is_file():
        sizes = {f"{layout.folder}/{file}": layout.size(file) for file in layout.files}
        for name, stream in archive.members(path, sizes):
            yield f"{path}: {name}", name.removeprefix(f"{layout.folder}/"), stream
        return
    for name in (*layout.python, root.name):
        if name in layout.python and (name == root.name or (root / name).exists()):
            raise DataError(
                f"{root}: {name} is the python version, which is a pickle and may run any code when it is "
                f"opened. {_download(layout)}"
            )
    raise DataError(f"{root}: found neither {layout.archive} nor {layout.folder}/; {_download(layout)}")


def _unpacked(layout: Layout, folder: Path) -> Iterator[tuple[str, str, BufferedIOBase]]:
    for file in layout.files:
        path = folder / file
        size = path.stat().st_size if path.is_file() else None
        if size != layout.size(file):
            state = "is missing" if size is None else f"has {size:,} bytes"
            raise DataError(f"{path}: {state}, expected {layout.size(file):,} bytes; {_download(layout)}")
        with path.open("rb") as stream:
            yield str(path), file, stream


def _download(layout: Layout) -> str:
    return f"download https://www.cs.toronto.edu/~kriz/{layout.archive}"
