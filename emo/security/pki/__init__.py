"""Certificates of a fleet: its CA (authority.py), a node's own key and request (node.py), PEM files (pem_files.py)."""
