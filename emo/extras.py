"""What to say when a package that only some machines need is not installed."""

import contextlib
from collections.abc import Iterator

from emo.errors import EmoError


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around the import of a tier. Raises EmoError that names the extra when a package of it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise EmoError(f"{error.name} is not installed here: pip install 'emo-overlays[{extra}]'") from error
