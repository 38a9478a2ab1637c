"""Benches of `emo watch`."""
