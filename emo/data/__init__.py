"""Datasets, their partition over devices, fixed batches and held-out data; a user's own gives `Dataset`."""

from emo.data.dataset import Dataset

__all__ = ["Dataset"]
