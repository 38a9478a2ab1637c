"""Reads named files out of a .tar.gz as a stream, nothing to disk, nothing larger than asked for.

Not tarfile.open: that believes the size in an extended header, so
a small archive can make it allocate all memory.
"""

import gzip
import tarfile
from collections.abc import Iterator, Mapping
from io import BufferedIOBase
from pathlib import Path

from emo.errors import DataError

BLOCK = 512
PIECE = 1 << 16
TAIL = 1 << 20  # padding after the last member
MAX_MEMBERS = 64


def members(path: Path, sizes: Mapping[str, int]) -> Iterator[tuple[str, BufferedIOBase]]:
    """(name, stream) for each regular file in `sizes` (name -> exact bytes), in the archive's order.

    The caller reads exactly that many bytes from the stream before it asks for the next; the rest is skipped, to
    the end, so that gzip's checksum covers what was taken. Raises DataError on a size that is wrong or too large,
    and lets the errors of gzip and tarfile through: OSError, EOFError, zlib.error, tarfile.TarError.
    """
    largest = max(sizes.values())
    with gzip.open(path, "rb") as stream:
        for _ in range(MAX_MEMBERS):
            header = stream.read(BLOCK)
            if not header.strip(b"\0"):
                break
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            name, size = member.name.removeprefix("./"), member.size
            padded = -(-size // BLOCK) * BLOCK
            if not 0 <= size <= largest:
                raise DataError(f"{path}: {name} claims {size:,} bytes, expected at most {largest:,}")
            if name in sizes and member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                if size != sizes[name]:
                    raise DataError(f"{path}: {name} has {size:,} bytes, expected {sizes[name]:,}")
                yield name, stream
                padded -= size
            _skip(stream, padded)
        _skip(stream, TAIL)
        if stream.read(1):
            raise DataError(f"{path}: has over {MAX_MEMBERS} members, or goes on after its end")


def _skip(stream: BufferedIOBase, size: int) -> None:
    while size > 0 and (piece := stream.read(min(size, PIECE))):
        size -= len(piece)
