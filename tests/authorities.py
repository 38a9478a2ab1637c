"""Nodes that ask a CA for certificates."""

from emo.pki import node, pem
from emo.pki.authority import Authority


def request(folder, name):
    node.request(folder / name, name)
    return folder / name / "node.csr"


def issue(ca, name, kind="node", hosts=(), days=365):
    csr = pem.request(request(ca.parent, name))
    return Authority(ca).issue(csr, name, kind, hosts, days)
