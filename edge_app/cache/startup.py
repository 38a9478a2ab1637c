"""The catalogue from the files, when a cache is opened.

Knows names, and of a batch that has several files which one counts. Knows no budget and no lock: nobody else is there yet.
"""

from collections.abc import Callable
from pathlib import Path

from edge_app.cache.batch_files import Shelf
from edge_app.cache.catalogue import Catalogue
from edge_app.cache.index import Key, Row

_PROGRESS = 10_000


def rebuild(shelf: Shelf, catalogue: Catalogue, say: Callable[[int], None] | None) -> list[tuple[Key, Row]]:
    """Fill `catalogue`; what is not ours is set aside. `say`: how many files were seen, now and then.

    Of a batch's versions the newest that is whole counts: a killed process or a power cut may leave several. Returned
    are the older ones, to be removed when the others are on the disk. Raises OSError.
    """
    several: dict[Key, list[Row]] = {}
    for count, (path, key, row, mtime) in enumerate(shelf.scan(), 1):
        if say and count % _PROGRESS == 0:
            say(count)
        if key is None:
            shelf.set_aside(Path(path), row.size)
        elif catalogue.index.get(key):
            several.setdefault(key, []).append(row)
        else:
            catalogue.found(key, row, mtime)
    older: list[tuple[Key, Row]] = []
    for key, rows in several.items():
        rows += [row for _, row in catalogue.forget(key)]
        for row in sorted(rows, reverse=True):
            if catalogue.index.get(key):
                older.append((key, row))
            elif shelf.read(key, row):
                catalogue.found(key, row, shelf.path(key, row).stat().st_mtime_ns)
            else:
                shelf.set_aside(shelf.path(key, row), row.size)
    return older
