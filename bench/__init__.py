"""One file a figure; each prints what it measured, `--json FILE` writes it."""
