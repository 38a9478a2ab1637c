"""Trains the overlay on replayed batches; checkpoints; several GPUs."""
