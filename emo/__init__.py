"""What the tiers share. Imports no tier (but for `emo.cli`, the composition root)."""

__version__ = "0.1.0"
