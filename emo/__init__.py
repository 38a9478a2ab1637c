"""What the tiers share. Imports no tier."""

__version__ = "0.2.0"
