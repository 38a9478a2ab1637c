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

An AssertionError or a KeyError is a bug of ours, never bad input.
"""

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """Advice on a name that is not in `known`: the one that was probably meant, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(names)}"


class EmoError(Exception):
    """Base of all. Its text is for the person who has to act on it."""


class ConfigError(EmoError): ...


class DataError(EmoError): ...


class ImageTooLarge(DataError): ...  # noqa: N818 - reads as HTTP says it


class PartitionError(EmoError): ...


class ModelError(EmoError): ...


class WireError(EmoError): ...


class FrameError(WireError): ...


class CodecError(WireError): ...


class BaseError(CodecError):
    """A delta whose base is missing: the bytes are fine, the sender has to send in full."""


class TopicError(WireError): ...


class TooLarge(EmoError): ...  # noqa: N818 - reads as the field says it


class BrokerError(EmoError): ...


class LoginError(BrokerError): ...


class CertificateError(EmoError): ...


class UpdateRefused(EmoError): ...  # noqa: N818


class QuorumError(EmoError): ...


class CheckpointError(EmoError): ...


class CacheError(EmoError): ...


class ExportError(EmoError): ...


class ServeError(EmoError): ...
