"""Nodes that ask a CA for certificates."""

from emo.security.pki import node_request, pem_files
from emo.security.pki.authority import Authority


def request(folder, name):
    node_request.request(folder / name, name)
    return folder / name / "node.csr"


def issue(ca, name, kind="node", hosts=(), days=365):
    csr = pem_files.request(request(ca.parent, name))
    return Authority(ca).issue(csr, name, kind, hosts, days)
