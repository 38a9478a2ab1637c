"""The keys that a CA has revoked for good, by digest, and whose they were. The list outlives the CA's own CRL and the
files of its certificates.

    revoked.txt   DIGEST KIND ID, a line each
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from emo import files
from emo.config import ID
from emo.errors import CertificateError
from emo.security.pki import pem_files

NAME = "revoked.txt"
Owner = tuple[str, str]  # kind, id
_LIMIT = 64 << 20  # bytes: half a million of them
_LINE = re.compile(rf"([0-9a-f]{{64}}) (node|broker) ({ID.pattern})")


class Revoked:
    """Of the CA in `folder`. `new`: there is no file yet; the CA was made before there was one."""

    def __init__(self, folder: Path) -> None:
        """Raises CertificateError: a damaged line."""
        self._path = folder / NAME
        self.new = not self._path.exists()
        self._owners: dict[str, Owner] = {} if self.new else dict(_read(self._path))

    def add(self, digests: Iterable[str], owner: Owner) -> None:
        self._owners |= dict.fromkeys(digests, owner)

    def write(self) -> None:
        """Raises CertificateError."""
        lines = (f"{digest} {kind} {name}\n" for digest, (kind, name) in self._owners.items())
        pem_files.write(self._path, "".join(lines).encode(), public=False)

    def owner(self, digest: str) -> Owner | None:
        """Whose key it was, if it was revoked."""
        return self._owners.get(digest)

    def knows(self, owner: Owner) -> bool:
        """Whether a key of `owner` was ever revoked."""
        return owner in self._owners.values()


def _read(path: Path) -> Iterator[tuple[str, Owner]]:
    text = files.whole(path, _LIMIT, CertificateError).decode("ascii", "replace")
    for number, line in enumerate(text.splitlines(), 1):
        if not (parts := _LINE.fullmatch(line)):
            raise CertificateError(
                f"{path}: line {number} is damaged; restore it from a backup: without it, revoked keys could come back"
            )
        yield parts[1], (parts[2], parts[3])
