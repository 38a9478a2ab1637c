"""What the tiers share. Imports no tier."""

__version__ = "0.1.0"
