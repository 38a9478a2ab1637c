"""Certificates of a fleet: its CA (authority.py), a node's own key and request (node_request.py), PEM files (pem_files.py)."""
