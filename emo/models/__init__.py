"""Split networks: trunk, head and overlay; built in, or the user's own, which gives `Parts`."""

from emo.models.layers import Parts

__all__ = ["Parts"]
