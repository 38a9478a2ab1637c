"""A child process that reads untrusted input, one job after the other: a decoder, a parser or a model that fails on it
takes this process with it at worst. `cloud_app.serving.workers` starts it for requests, `cloud_app.serving.registry` for new versions.

    python -m cloud_app.serving.worker MEMORY_BYTES

Jobs come on stdin, answers go to stdout, each a frame: two lengths, JSON, bytes. No pickle: what comes from a child that
was taken over is bytes to be checked, too.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

from cloud_app.serving.infer_request import InferRequest, Refused, RequestedOutput, Signature, parse
from emo.errors import ServeError
from emo.logs import printable

LENGTHS = struct.Struct("<IQ")
TOO_MUCH = "it takes more memory or time to read than is set aside for one request"
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG

Job = dict[str, Any]


def command(memory: int) -> list[str]:
    """What starts one. `memory`: bytes that it may have above what it starts with."""
    return [sys.executable, "-P", "-m", "cloud_app.serving.worker", str(memory)]


def environment() -> dict[str, str]:
    """It imports what we do, and nothing that lies where we were started."""
    paths = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OPENBLAS_NUM_THREADS": "1"}


def frame(head: Job, size: int) -> bytes:
    """What goes before `size` bytes of data."""
    text = json.dumps(head).encode()
    return LENGTHS.pack(len(text), size) + text


def image_job(takes: Signature) -> Job:
    return {"work": "image", "takes": asdict(replace(takes, labels=()))}


def call_job(takes: Signature, header: int | None) -> Job:
    return {"work": "call", "takes": asdict(replace(takes, labels=())), "header": header}


def as_call(answer: Job, images: Any) -> InferRequest:
    """Of the answer to a `call_job`, and the array that came with it."""
    outputs = tuple(RequestedOutput(name, binary, classes) for name, binary, classes in answer["outputs"])
    return InferRequest(answer["id"], images, outputs, answer["timeout_s"])


def main() -> None:
    import cloud_app.serving.images  # noqa: F401, PLC0415 - before memory is short; those who only ask need no Pillow

    _confine(int(sys.argv[1]))
    while True:
        lengths = sys.stdin.buffer.read(LENGTHS.size)
        if len(lengths) < LENGTHS.size:
            return
        head, size = LENGTHS.unpack(lengths)
        job, data = json.loads(sys.stdin.buffer.read(head)), sys.stdin.buffer.read(size)
        # Of processor, not of the clock: a machine that is busy must not make a good image a bad one.
        signal.setitimer(signal.ITIMER_PROF, job["seconds"])
        answer, result = _answer(job, data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(sys.stdout.buffer, answer, result)


def _write(out: BinaryIO, answer: Job, result: bytes) -> None:
    out.write(frame(answer, len(result)))
    out.write(result)
    out.flush()


def _answer(job: Job, data: bytes) -> tuple[Job, bytes]:
    try:
        return _WORK[job["work"]](job, data)
    except ServeError as error:
        return {"status": error.status if isinstance(error, Refused) else 400, "error": str(error)}, b""
    except MemoryError:
        return {"status": 413, "error": TOO_MUCH}, b""
    except Exception as error:  # noqa: BLE001 - a bug of ours, which the parent logs
        return {"status": 500, "error": printable(repr(error), 500)}, b""


def _image(job: Job, data: bytes) -> tuple[Job, bytes]:
    from cloud_app.serving.images import pixels  # noqa: PLC0415 - as in main

    values, size = pixels(data, _signature(job))
    return {"size": size, "shape": values.shape}, values.tobytes()


def _call(job: Job, data: bytes) -> tuple[Job, bytes]:
    call = parse(data, _signature(job), job["header"])
    outputs = [(each.name, each.binary, each.classes) for each in call.outputs]
    answer = {"id": call.id, "outputs": outputs, "timeout_s": call.timeout_s, "shape": call.images.shape}
    return answer, call.images.tobytes()


def _version(job: Job, _: bytes) -> tuple[Job, bytes]:
    from cloud_app.serving import known_answer  # noqa: PLC0415 - it brings onnxruntime, which the others do not need
    from cloud_app.serving.model import Served  # noqa: PLC0415
    from cloud_app.serving.repository import Repository  # noqa: PLC0415

    repository, name, version = Repository(Path(job["root"])), job["name"], job["version"]
    served = Served.load(repository, name, version, 1)
    known_answer.check(served, repository.selftest(name, version))
    return {"digest": served.digest}, b""


_WORK: dict[str, Callable[[Job, bytes], tuple[Job, bytes]]] = {
    "image": _image,
    "call": _call,
    "version": _version,
}


def _signature(job: Job) -> Signature:
    fields = job["takes"]
    outputs = {name: tuple(size) for name, size in fields["outputs"].items()}
    return Signature(**{**fields, "sample": tuple(fields["sample"]), "outputs": outputs, "labels": ()})


def _confine(memory: int) -> None:
    """`memory`: bytes above what the process has by now. Each as far as the system offers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's: the parent ends its children
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = memory + pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    with contextlib.suppress(OSError):  # where memory is short this process goes, not the endpoint
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


if __name__ == "__main__":
    main()
