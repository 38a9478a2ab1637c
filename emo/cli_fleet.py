"""The composition root's part for a whole fleet: `emo broker`, `emo check`; `emo pki ...` is in cli_pki.py."""

import argparse
import json
import threading
from collections.abc import Callable
from pathlib import Path

from emo.errors import ConfigError
from emo.logs import printable

Add = Callable[[str, object, str], argparse.ArgumentParser]


def commands(add: Add) -> None:
    """`add(name, run, help)` makes the parser of one command."""
    broker = add(
        "broker", _write, "write Mosquitto's configuration and access rules for one broker of a fleet"
    )
    broker.add_argument("link", choices=["wan", "lan"], help="the cloud's broker, or an edge's")
    broker.add_argument(
        "--fleet", type=Path, required=True, metavar="FILE", help="fleet.yaml: who belongs to whom"
    )
    broker.add_argument("--edge", metavar="ID", help="lan: whose (default: none; lan must have it)")
    broker.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="mosquitto.conf and acl go here"
    )
    broker.add_argument(
        "--at", type=Path, metavar="DIR", help="this folder, as Mosquitto sees it (default: --out)"
    )
    broker.add_argument(
        "--tls",
        type=Path,
        metavar="DIR",
        help="its ca.crt, node.crt, node.key, crl.pem, as it sees them (default: AT/tls)",
    )
    broker.add_argument("--port", type=int, default=8883, help="where it listens")
    broker.add_argument(
        "--bind", default="", metavar="ADDRESS", help="listen here only (default: everywhere)"
    )
    broker.add_argument("--root", default="emo", help="first level of every topic")
    broker.add_argument("--queue-mib", type=int, default=1024, help="MiB that may wait for one client")
    broker.add_argument("--memory-mib", type=int, default=4096, help="MiB of memory for everything")
    broker.add_argument(
        "--user", default="", help="whom Mosquitto becomes when root starts it (default: its own, mosquitto)"
    )
    broker.add_argument("--json", action="store_true", help="print {changed, files}")

    check = add("check", _check, "do the configurations of a fleet work, and fit each other? 0: yes, 1: no")
    text = "every node's configuration; - for standard input: one after each line of ---"
    check.add_argument("files", type=Path, nargs="+", metavar="FILE", help=text)
    text = "the cloud and each edge have a broker of their own, as `emo broker` makes them"
    check.add_argument("--own-brokers", action="store_true", help=text)
    check.add_argument("--json", action="store_true", help="print {ok, nodes, wrong}")


def _check(args: argparse.Namespace, _stop: threading.Event) -> int:
    from emo.ops import fleet_check

    nodes, wrong = fleet_check.read(args.files)
    wrong = wrong or list(
        fleet_check.wrong(nodes, args.own_brokers)
    )  # of a node that is not read others seem wrong
    if args.json:
        print(json.dumps({"ok": not wrong, "nodes": len(nodes), "wrong": wrong}))
    else:
        print("\n".join(map(printable, wrong)) or f"ok: {fleet_check.count(nodes)}, and they fit each other")
    return int(bool(wrong))


def _write(args: argparse.Namespace, _stop: threading.Event) -> int:
    from emo.config import ID
    from emo.security import members, mosquitto

    if (args.link == "lan") != (args.edge is not None):
        raise ConfigError(
            "lan needs --edge, whose broker it is" if args.link == "lan" else "--edge goes with lan"
        )
    if not ID.fullmatch(args.root):
        raise ConfigError(f"--root {args.root!r}: letters, digits, '.', '_', '-', at most 64")
    if not 1 <= args.port <= 65535 or args.queue_mib < 1:
        raise ConfigError("--port is 1 to 65535, --queue-mib 1 or more")
    if args.memory_mib < 3 * args.queue_mib:
        raise ConfigError(
            "--memory-mib: three times --queue-mib at least; where memory ends before a queue does, Mosquitto 2.0 "
            "cannot send what waits either, and never recovers"
        )
    here = args.at or args.out.absolute()
    for option, value in (("--at", here), ("--tls", args.tls), ("--bind", args.bind), ("--user", args.user)):
        if any(letter.isspace() for letter in str(value or "")):
            raise ConfigError(
                f"{option} {str(value)!r}: no spaces and no line ends in what Mosquitto is to read"
            )
    settings = mosquitto.Settings(
        port=args.port,
        here=here,
        tls=args.tls or here / "tls",
        bind=args.bind,
        root=args.root,
        queue_mib=args.queue_mib,
        memory_mib=args.memory_mib,
        user=args.user,
    )
    changed = mosquitto.write(args.out, members.load(args.fleet), args.edge, settings)
    found = {"changed": bool(changed), "files": [str(path) for path in changed]}
    print(
        json.dumps(found) if args.json else f"{args.out}: {', '.join(p.name for p in changed) or 'unchanged'}"
    )
    return 0
