"""Every error that our code raises on bad input.

    EmoError
    ├── ConfigError       a configuration key or value; the text names the file and the key
    ├── DataError         a dataset or an image that is missing, damaged or of the wrong kind
    │   └── ImageTooLarge an image of too many pixels
    ├── PartitionError    samples that cannot be dealt out to the devices as asked
    ├── ModelError        an unknown network, or parts that do not fit each other
    ├── WireError         bytes from a wire that must not be believed
    │   ├── FrameError    header, checksum, version, chunks
    │   ├── CodecError    an encoded array
    │   │   └── BaseError a delta without what it was made against
    │   └── TopicError    a topic or an id
    ├── TooLarge          a message that the broker would not take: refused here, at once
    ├── BrokerError       no broker, or one that refuses us
    │   └── LoginError    it is there, and does not let us in: user, password, certificate or access rules
    ├── CertificateError  a certificate, a key, a request for one, or the folder of a CA
    ├── UpdateRefused     a model update that must not be averaged
    ├── QuorumError       a run that cannot go on; the text names the devices that are missing
    ├── CheckpointError   a file that the cloud would go on from
    ├── CacheError        the replay cache's folder
    ├── ExportError       an ensemble that cannot be built, or an ONNX file that does not agree with torch
    └── ServeError        a request or a model repository that the endpoint cannot serve

Bad input is never an AssertionError or a KeyError: those are bugs of ours.
"""

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """What to say of a name that is not among `known`: the one that was meant, or all there are."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(names)}"


class EmoError(Exception):
    """Base of all; the text is written for the person who has to act on it."""


class ConfigError(EmoError):
    pass


class DataError(EmoError):
    pass


class ImageTooLarge(DataError):  # noqa: N818 - reads as HTTP says it
    pass


class PartitionError(EmoError):
    pass


class ModelError(EmoError):
    pass


class WireError(EmoError):
    pass


class FrameError(WireError):
    pass


class CodecError(WireError):
    pass


class BaseError(CodecError):
    """A delta whose base is not here: nothing is wrong with the bytes, and the sender has to send in full."""


class TopicError(WireError):
    pass


class TooLarge(EmoError):  # noqa: N818 - reads as the field says it
    pass


class BrokerError(EmoError):
    pass


class LoginError(BrokerError):
    pass


class CertificateError(EmoError):
    pass


class UpdateRefused(EmoError):  # noqa: N818
    pass


class QuorumError(EmoError):
    pass


class CheckpointError(EmoError):
    pass


class CacheError(EmoError):
    pass


class ExportError(EmoError):
    pass


class ServeError(EmoError):
    pass
