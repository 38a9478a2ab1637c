"""`emo broker`, `emo pki`."""

import argparse
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emo.config import ID
from emo.errors import CertificateError, ConfigError
from emo.extras import needs
from emo.parser import Commands, Run

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from emo.security.pki.authority import Authority
    from emo.security.pki.certificates import Kind

Result = tuple[str, Any]  # as text, as JSON
_DAYS, _CA_DAYS, _CENTURY = 365, 3650, 36500
_PASSPHRASE = 1000  # bytes; cryptography takes 1,023


def register(commands: Commands) -> None:
    text = "write Mosquitto's configuration and access rules for one broker of a fleet"
    option = commands.add("broker", _broker, text).add_argument
    option("link", choices=["wan", "lan"], help="the cloud's broker, or an edge's")
    option("--fleet", type=Path, required=True, metavar="FILE", help="fleet.yaml: who belongs to whom")
    option("--edge", metavar="ID", help="lan: whose (default: none; lan must have it)")
    option("--out", type=Path, required=True, metavar="DIR", help="mosquitto.conf and acl go here")
    option("--at", type=Path, metavar="DIR", help="this folder, as Mosquitto sees it (default: --out)")
    option(
        "--tls",
        type=Path,
        metavar="DIR",
        help="its ca.crt, node.crt, node.key, crl.pem, as it sees them (default: AT/tls)",
    )
    option("--port", type=int, default=8883, help="where it listens")
    option("--bind", default="", metavar="ADDRESS", help="listen here only (default: everywhere)")
    option("--root", default="emo", help="first level of every topic")
    option("--queue-mib", type=int, default=1024, help="MiB that may wait for one client")
    option("--memory-mib", type=int, default=4096, help="MiB of memory for everything")
    option("--user", default="", help="whom Mosquitto becomes when root starts it (default: its own, mosquitto)")
    option("--json", action="store_true", help="print {changed, files}")

    pki = commands.add("pki", None, "the fleet's certificates: a CA, its nodes, its brokers", "pki")
    parts = Commands(pki, "PART", dest="part", required=True)

    def part(name: str, run: Callable[[argparse.Namespace], Result], text: str) -> argparse.ArgumentParser:
        parser = parts.add(name, _printing(run), text)
        parser.add_argument("--json", action="store_true", help="print the result as JSON")
        return parser

    request = part("request", _request, "on a node: make its key, and a request for a certificate")
    request.add_argument("--dir", type=Path, required=True, metavar="DIR", help="node.key and node.csr go here")
    request.add_argument("--id", required=True, help="the node's id, as in its configuration")

    init = part("init", _init, "make a CA in an empty folder")
    issue = part("issue", _issue, "the first certificate of a node, or of its broker")
    renew = part("renew", _renew, "another certificate for who has one; the present one stays good")
    revoke = part("revoke", _revoke, "take a node's certificates back; then copy crl.pem to every broker and node")
    rotate = part("rotate", _rotate, "a new CA beside the old one; with --finish, give the old one up")
    for parser in (init, issue, renew, revoke, rotate, part("list", _list, "every certificate, and the CA")):
        parser.add_argument("--ca", type=Path, required=True, metavar="DIR", help="the CA's folder; nobody else's")
        parser.add_argument(
            "--passphrase-file",
            type=Path,
            metavar="FILE",
            help="its first line encrypts ca.key (default: not encrypted)",
        )
    for parser in (init, rotate):
        parser.add_argument("--name", default="EMO", help="of the fleet, for people")
    for parser in (issue, renew, revoke):
        parser.add_argument("--id", required=True, help="the node's id, as in its configuration")
        parser.add_argument("--broker", action="store_true", help="of the broker beside that node")
    for parser in (issue, renew):
        parser.add_argument("--csr", type=Path, required=True, metavar="FILE", help="node.csr, from the node")
        parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the certificate: node.crt there")
        parser.add_argument("--host", nargs="+", default=[], help="a broker's host names and addresses (default: none)")
    for parser, days in ((init, _CA_DAYS), (rotate, _CA_DAYS), (issue, _DAYS), (renew, _DAYS)):
        parser.add_argument("--days", type=_positive, default=days, help="how many it is good for")
    text = "refuse an id that is not in this fleet.yaml, and a broker beside a device or an observer (default: any id)"
    issue.add_argument("--fleet", type=Path, metavar="FILE", help=text)
    text = "it was revoked, and is in the right hands again: give it another, for a new key"
    issue.add_argument("--readmit", action="store_true", help=text)
    text = "not before fewer are left, unless CA, key or hosts are others; then write the present one (default: always)"
    renew.add_argument("--within", type=_positive, metavar="DAYS", help=text)
    rotate.add_argument("--finish", action="store_true", help="once everybody has a certificate of the new CA")


def _broker(args: argparse.Namespace, _stop: threading.Event) -> int:
    from emo.security import members, mosquitto

    if (args.link == "lan") != (args.edge is not None):
        raise ConfigError("lan needs --edge, whose broker it is" if args.link == "lan" else "--edge goes with lan")
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
            raise ConfigError(f"{option} {str(value)!r}: no spaces and no line ends in what Mosquitto is to read")
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
    if args.json:
        print(json.dumps({"changed": bool(changed), "files": [str(path) for path in changed]}))
    else:
        print(f"{args.out}: {', '.join(path.name for path in changed) or 'unchanged'}")
    return 0


def _printing(run: Callable[[argparse.Namespace], Result]) -> Run:
    def command(args: argparse.Namespace, _stop: threading.Event) -> int:
        with needs("pki"):
            try:
                text, result = run(args)
            except OSError as error:  # a folder that may not be listed, say
                raise CertificateError(f"{error.filename or args.part}: {error.strerror}") from error
        print(json.dumps(result) if args.json else text)
        return 0

    return command


def _request(args: argparse.Namespace) -> Result:
    from emo.security.pki import node_request

    changed = node_request.request(args.dir, args.id)
    path = args.dir / "node.csr"
    return f"{path}: take it to the CA; node.key stays here", {"changed": changed, "csr": str(path)}


def _init(args: argparse.Namespace) -> Result:
    from emo.security.pki import authority

    authority.init(args.ca, args.name, args.days, _passphrase(args))
    return (
        f"{args.ca}: a CA for {args.days} days; keep a copy of this folder where no other machine reads it",
        {"changed": True},
    )


def _issue(args: argparse.Namespace) -> Result:
    from emo.security.pki import pem_files

    if args.fleet is not None:
        from emo.security import members

        role = members.load(args.fleet).role(args.id)
        if args.broker and role not in {"cloud", "edge"}:
            raise CertificateError(f"--broker: {args.id} is of tier {role}; brokers stand beside edges and the cloud")
    _out(args)
    with pem_files.lock(args.ca):
        request = pem_files.request(args.csr)
        issued = _authority(args).issue(request, args.id, _kind(args), args.host, args.days, args.readmit)
        pem_files.write(args.out, pem_files.encoded(issued))
    until = f"{issued.not_valid_after_utc:%Y-%m-%d}"
    return f"{args.out}: {args.id} until {until}", {"changed": True, "not_after": until}


def _renew(args: argparse.Namespace) -> Result:
    from emo.security.pki import pem_files

    _out(args)
    with pem_files.lock(args.ca):
        request = pem_files.request(args.csr)
        newest, new = _authority(args).renew(request, args.id, _kind(args), args.host, args.days, args.within)
        written = pem_files.write(args.out, pem_files.encoded(newest))
    until = f"{newest.not_valid_after_utc:%Y-%m-%d}"
    how = "renewed, now" if new else "not due,"
    result = {"changed": new or written, "new": new, "not_after": until}
    return f"{args.out}: {args.id} {how} until {until}", result


def _revoke(args: argparse.Namespace) -> Result:
    from emo.security.pki import pem_files

    with pem_files.lock(args.ca):
        count = _authority(args).revoke(args.id, _kind(args))
    text = f"{args.id}: {count} revoked; copy {args.ca / 'crl.pem'} to every broker, and reload it; to every node too"
    return text if count else f"{args.id}: nothing left to revoke", {"changed": count > 0, "revoked": count}


def _rotate(args: argparse.Namespace) -> Result:
    from emo.security.pki import pem_files

    with pem_files.lock(args.ca):
        ca = _authority(args)
        if args.finish:
            ca.finish()
            done = "the new CA is the only one; ca.crt and crl.pem go to every broker and node, brokers are restarted"
        else:
            ca.rotate(args.name, args.days)
            done = (
                "two CAs; ca.crt and crl.pem go to every broker (kill -HUP) and node, then everybody's certificate is renewed, "
                "then --finish"
            )
    return f"{args.ca}: {done}", {"changed": True}


def _list(args: argparse.Namespace) -> Result:
    from emo.security.pki.authority import days_left
    from emo.security.pki.node_request import common_name

    ca = _authority(args, keys=False)
    entries: list[tuple[str, str, str, Sequence[str], bool, Certificate]] = []
    for number, root in enumerate(ca.roots):
        state = "valid" if days_left(root) >= 0 else "expired"
        entries.append((common_name(root.subject), "ca", state, (), bool(number), root))
    entries += [(i.id, i.kind, i.state, i.hosts, i.old, i.certificate) for i in ca.certificates()]
    rows: list[dict[str, Any]] = [
        {
            "id": name,
            "kind": kind,
            "state": state,
            "hosts": list(hosts),
            "ca": "old" if old else "current",
            "serial": f"{certificate.serial_number:x}",
            "not_before": f"{certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}",
            "not_after": f"{certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
            "days_left": days_left(certificate),
        }
        for name, kind, state, hosts, old, certificate in entries
    ]
    lines = [
        f"{row['id']:24} {row['kind']:7} {row['state']:11} {row['not_after'][:10]} {row['days_left']:5} days"
        f"{'  old CA' if row['ca'] == 'old' else ''}{'  ' if row['hosts'] else ''}{', '.join(row['hosts'])}"
        for row in rows
    ]
    return "\n".join(lines), rows


def _authority(args: argparse.Namespace, keys: bool = True) -> "Authority":
    from emo.security.pki.authority import Authority

    return Authority(args.ca, _passphrase(args), keys)


def _kind(args: argparse.Namespace) -> "Kind":
    return "broker" if args.broker else "node"


def _out(args: argparse.Namespace) -> None:
    """Raises CertificateError when --out holds something else than a certificate, which would be lost: a key, say."""
    from emo.security.pki import pem_files

    if args.out.exists():
        try:
            pem_files.certificate(args.out)
        except CertificateError as error:
            raise CertificateError(
                f"--out {args.out}: holds no certificate, and is not overwritten; name another file"
            ) from error


def _passphrase(args: argparse.Namespace) -> bytes | None:
    from emo.security.pki import pem_files

    if args.passphrase_file is None:
        return None
    line = pem_files.read(args.passphrase_file).partition(b"\n")[0].strip()
    if not 1 <= len(line) <= _PASSPHRASE:
        wrong = f"is longer than {_PASSPHRASE} bytes" if line else "is empty"
        raise CertificateError(f"--passphrase-file {args.passphrase_file}: its first line {wrong}")
    return line


def _positive(text: str) -> int:
    if not 1 <= (number := int(text)) <= _CENTURY:
        msg = f"{number}: 1 to {_CENTURY:,} days"
        raise argparse.ArgumentTypeError(msg)
    return number
