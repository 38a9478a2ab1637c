"""`emo serve`, `emo predict`, `emo models`."""

import argparse
import json
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emo.errors import ConfigError
from emo.extras import needs
from emo.logs import printable
from emo.parser import Commands

if TYPE_CHECKING:
    from cloud_app.serving.client import Labels, Prediction

ENSEMBLE = "ensemble"

log = logging.getLogger("emo")


def register(commands: Commands) -> None:
    text = "serve a model repository (Open Inference Protocol v2)"
    option = commands.add("serve", _serve, text, "serve", signals=()).add_argument  # it drains by itself
    option("--models", type=Path, required=True, metavar="DIR", help="the model repository")
    option("--host", default="127.0.0.1", help="the address to listen on; 0.0.0.0: every one")
    option("--port", type=int, default=8000, help="0: any free one")
    option("--threads", type=int, help="onnxruntime's threads (default: the cores of this container)")
    option("--runs", type=int, default=2, help="runs at a time, which share the threads")
    option("--max-batch", type=int, default=64, help="samples in one run of the model")
    option(
        "--max-delay-ms",
        type=float,
        default=0.0,
        help="how long a request waits for company on an idle machine",
    )
    option("--queue", type=int, default=256, help="requests of a model that may wait; then 503")
    option("--timeout-s", type=float, default=10.0, help="how long one may wait; then 503")
    option(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="one key a line; then all but health needs one. EMO_API_KEY may hold one too (default: nobody needs one)",
    )
    option("--tls-cert", type=Path, metavar="FILE", help="certificate chain, PEM (default: no TLS)")
    option(
        "--tls-key",
        type=Path,
        metavar="FILE",
        help="its private key, PEM, without a password (default: no TLS)",
    )
    option("--access-log", metavar="FILE", help="a JSON line for each request; - for stdout (default: no log)")
    option("--poll-s", type=float, default=2.0, help="seconds between two looks for another version; 0: none")
    option(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="web pages whose scripts may ask, as https://HOST[:PORT], or * for all; may be given several times (default: none)",
    )

    option = commands.add("predict", _predict, "ask an endpoint what is on an image", "serve").add_argument
    option("image", type=Path, metavar="IMAGE", help="a picture, as a file")
    option("--url", default="http://127.0.0.1:8000", help="of the endpoint")
    option("--name", default="emo", help="the model's name")
    option("--top", type=int, default=3, help="labels to print")
    option("--members", action="store_true", help="also what the FL model and each pair say for themselves")
    option(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="whose first key to send (default: EMO_API_KEY, if it is set)",
    )
    option(
        "--ca",
        type=Path,
        metavar="FILE",
        help="PEM certificates to believe of an https endpoint (default: the system's)",
    )
    option("--json", action="store_true", help="print every label as JSON")

    models = commands.add("models", None, "the versions in a model repository, and which one is served")
    verbs = Commands(models, "list|promote|rollback|prune", dest="verb", required=True)
    for verb, run, text in (
        ("list", _list, "every model, its versions, the current one"),
        ("promote", _promote, "serve this version, whatever is added; `latest`: the newest, always"),
        ("rollback", _rollback, "serve the version before the current one"),
        ("prune", _prune, "delete old versions, never the current one"),
    ):
        parser = verbs.add(verb, run, text)
        parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="the model repository")
        if verb == "list":
            parser.add_argument("--json", action="store_true", help="print the models as JSON")
        else:
            parser.add_argument("name", metavar="NAME", help="of the model")
        if verb == "promote":
            parser.add_argument("version", metavar="VERSION", help="a number, or latest")
        if verb == "prune":
            parser.add_argument("--keep", type=int, default=3, help="how many of the newest stay")


def _serve(args: argparse.Namespace, _stop: threading.Event) -> int:
    for name, least in (
        ("threads", 1),
        ("runs", 1),
        ("max_batch", 1),
        ("max_delay_ms", 0),
        ("queue", 1),
        ("poll_s", 0),
    ):
        value = getattr(args, name)
        if value is not None and not least <= value < 1e6:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: has to be {least} or more, and below a million")
    if not 0 < args.timeout_s < 1e6:
        raise ConfigError(f"--timeout-s {args.timeout_s}: has to be above 0, and below a million")
    if (args.tls_cert is None) != (args.tls_key is None):
        raise ConfigError("TLS takes both files: --tls-cert FILE --tls-key FILE")
    with needs("serve"):
        from cloud_app.serving.batching import Limits
        from cloud_app.serving.http.server import Options, serve
    options = Options(
        threads=args.threads,
        limits=Limits(args.max_batch, args.max_delay_ms / 1e3, args.queue, args.timeout_s, args.runs),
        api_key_file=args.api_key_file,
        tls=None if args.tls_cert is None else (args.tls_cert, args.tls_key),
        access_log=args.access_log,
        poll_s=args.poll_s,
        origins=tuple(args.cors_origin),
    )
    serve(args.models, args.host, args.port, options)
    return 0


def _predict(args: argparse.Namespace, _stop: threading.Event) -> int:
    if args.top < 1:
        raise ConfigError(f"--top {args.top}: must be 1 or more")
    with needs("serve"):
        from cloud_app.serving.client import first_key, predict
    key = first_key(args.api_key_file)
    found = predict(args.url, args.name, args.image, key, args.ca, members=args.members)
    if args.json:
        print(json.dumps(_told(found) if args.members else _as_dicts(found.labels)))
        return 0
    if args.members and not found.members:
        log.warning(
            "version %s of %s does not tell what its members answer: it was exported without", found.version, args.name
        )
    rows = [(ENSEMBLE, found.labels), *found.members] if args.members else [("", found.labels)]
    width = max(len(printable(name)) for name, _ in rows)
    for name, labels in rows:
        shown = [f"{probability:7.2%}  {printable(label)}" for label, probability in labels[: args.top]]
        print(f"{printable(name):{width}}  {'   '.join(shown)}" if args.members else "\n".join(shown))
    return 0


def _told(found: "Prediction") -> dict[str, Any]:
    members = [{"name": name, "probabilities": _as_dicts(labels)} for name, labels in found.members]
    return {"model_version": found.version, "probabilities": _as_dicts(found.labels), "members": members}


def _as_dicts(labels: "Labels") -> list[dict[str, Any]]:
    return [{"label": label, "probability": probability} for label, probability in labels]


def _list(args: argparse.Namespace, _stop: threading.Event) -> int:
    from cloud_app.serving.repository import Repository

    repository = Repository(args.models)
    names = repository.names()
    if args.json:
        rows = [
            {
                "name": name,
                "versions": repository.versions(name),
                "current": repository.current(name),
                "promoted": repository.promoted(name) is not None,
            }
            for name in names
        ]
        print(json.dumps(rows))
        return 0
    for name in names:
        how = "the newest" if repository.promoted(name) is None else "promoted"
        versions = ", ".join(map(str, repository.versions(name)))
        print(f"{printable(name)}: version {repository.current(name)} ({how}) of {versions}")
    if not names:
        print(f"{args.models}: no model here")
    return 0


def _promote(args: argparse.Namespace, _stop: threading.Event) -> int:
    from cloud_app.serving.repository import Repository

    if args.version != "latest" and not (args.version.isascii() and args.version.isdigit() and len(args.version) < 10):
        raise ConfigError(f"version {args.version[:40]!r}: has to be a number, or latest")
    repository = Repository(args.models)
    repository.promote(args.name, None if args.version == "latest" else int(args.version))
    print(f"{args.name}: version {repository.current(args.name)} is current")
    return 0


def _rollback(args: argparse.Namespace, _stop: threading.Event) -> int:
    from cloud_app.serving.repository import Repository

    print(f"{args.name}: version {Repository(args.models).rollback(args.name)} is current")
    return 0


def _prune(args: argparse.Namespace, _stop: threading.Event) -> int:
    from cloud_app.serving.repository import Repository

    deleted = Repository(args.models).prune(args.name, args.keep)
    print(f"{args.name}: deleted {', '.join(map(str, deleted)) or 'nothing'}")
    return 0
